"""Writes a CSV of sales, the same for everybody: make_csv.py FILE [ROWS]."""

import csv
import datetime
import random
import sys
from pathlib import Path

ROWS = 120_000
REGIONS = ["North", "South", "East", "West"]
PRODUCTS = {"apples": 219, "bread": 349, "coffee": 899, "honey": 1250, "olive oil": 1599}
"""Usual prices, in cents."""


def write_csv(path: Path, rows: int = ROWS) -> None:
    """Write ``rows`` sales of two years, with a season and a region that grows."""
    dice = random.Random(2024)
    start = datetime.date(2024, 1, 1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "region", "product", "units", "price"])
        for number in range(rows):
            day = number * 731 // rows
            date = start + datetime.timedelta(days=day)
            region = dice.choices(REGIONS, weights=[4, 3, 2, 1 + day / 150])[0]
            product = dice.choice(list(PRODUCTS))
            summer = 3 if date.month in (6, 7, 8) else 1
            cents = PRODUCTS[product] * dice.randint(90, 110) // 100
            units = dice.randint(1, 3 + summer)
            writer.writerow([date, region, product, units, f"{cents / 100:.2f}"])


if __name__ == "__main__":
    write_csv(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS)
