"""Analyses a CSV in a session: packages, live output, files back. Usage: analyse_csv.py [FOLDER].

The session has no network and sees no file of this machine but what is uploaded. Needs a worker
(./dev run); CODEGEN_MCP_ADDRESS names another than the one on the default port.
"""

import csv
import re
import sys
from collections import Counter
from pathlib import Path

from make_csv import write_csv

from codegen_mcp.client import Sandbox

SCRIPT = Path(__file__).parent / "session" / "analyse.py"
GIB = 1 << 30


def main(folder: Path) -> None:
    """Write the CSV, have it analysed in a session, and check what came back."""
    folder.mkdir(parents=True, exist_ok=True)
    sales = folder / "sales.csv"
    write_csv(sales)
    with Sandbox.create(memory_bytes=1 * GIB) as sandbox:
        with sales.open("rb") as file:
            uploaded = sandbox.files.write("sales.csv", file)
        print(f"uploaded {uploaded.size:,} bytes")

        packages = sandbox.install("pandas", "matplotlib", timeout=300)
        print("installed", ", ".join(f"{package.name} {package.version}" for package in packages))

        sandbox.files.write("analyse.py", SCRIPT.read_text())
        result = sandbox.run_python(
            file="analyse.py",
            args=["sales.csv"],
            timeout=120,
            on_stdout=lambda text: print(text, end="", flush=True),
            on_stderr=lambda text: print(text, end="", flush=True, file=sys.stderr),
        )
        if not result.ok:
            sys.exit(f"the analysis failed: {result.error}")
        for name in ("chart.png", "report.md"):
            (folder / name).write_bytes(sandbox.files.read(name, "bytes"))
    check(folder)
    print(f"correct: {folder / 'chart.png'} and {folder / 'report.md'}")


def check(folder: Path) -> None:
    """Compare the results with what plain Python computes from the same CSV."""
    chart = (folder / "chart.png").read_bytes()
    if not chart.startswith(b"\x89PNG\r\n\x1a\n") or len(chart) < 10_000:
        sys.exit("chart.png is not a picture of this chart")
    revenue: Counter[str] = Counter()
    with (folder / "sales.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            revenue[row["region"]] += int(row["units"]) * int(row["price"].replace(".", ""))
    revenue["**all**"] = revenue.total()
    report = (folder / "report.md").read_text()
    told = {name: int(whole + cents) for name, whole, cents in re.findall(ROW, report)}
    if told != dict(revenue):
        sys.exit(f"the report says {told}, the CSV {dict(revenue)}")


ROW = re.compile(r"^\| (\S+) \| (\d+)\.(\d\d) \|$", re.MULTILINE)

if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "analysis"))
