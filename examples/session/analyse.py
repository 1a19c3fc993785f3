"""Runs inside a session: reads sales.csv, writes chart.png and report.md."""

import sys


def say(text: str) -> None:
    print(text, flush=True)


say("loading pandas and matplotlib")
import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402

sales = pd.read_csv(sys.argv[1], parse_dates=["date"])
say(f"read {len(sales):,} rows")

# Money is counted in whole cents: sums of floats would differ in the last digit.
sales["cents"] = sales["units"] * (sales["price"] * 100).round().astype("int64")
month = sales["date"].dt.to_period("M")
by_month = sales.pivot_table("cents", index=month, columns="region", aggfunc="sum")
by_region = sales.groupby("region")["cents"].sum().sort_values(ascending=False)
for region, cents in by_region.items():
    say(f"{region}: {cents / 100:,.2f}")

figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
for region in by_region.index:
    axes.plot(by_month.index.to_timestamp(), by_month[region] / 100_000, label=region)
axes.set_title("Revenue by month and region")
axes.set_ylabel("thousands")
axes.set_ylim(bottom=0)
axes.grid(alpha=0.3)
figure.legend(loc="outside right upper", title="region")
figure.savefig("chart.png", dpi=150)
say("wrote chart.png")

with open("report.md", "w", encoding="utf-8") as report:
    report.write("# Sales\n\n| region | revenue |\n| --- | ---: |\n")
    for region, cents in by_region.items():
        report.write(f"| {region} | {cents / 100:.2f} |\n")
    report.write(f"| **all** | {by_region.sum() / 100:.2f} |\n\n")
    report.write(f"{len(sales)} rows, {sales['date'].min():%F} to {sales['date'].max():%F}.\n\n")
    report.write("![Revenue by month and region](chart.png)\n")
say("wrote report.md")
