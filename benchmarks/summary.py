"""Put the claims of benchmarks/results/*.json into the README, between its two marks.

    python benchmarks/summary.py [--check]

One line for each claim: what is compared, with whom, both figures, the ratio with its spread. `--check` changes nothing
and fails where the README says something else than the results.
"""

import argparse
import json
import sys

from harness import RESULTS, ROOT, Spread

README = ROOT / "README.md"
BEGIN, END = "<!-- begin of the results of benchmarks -->", "<!-- end of the results of benchmarks -->"


def table() -> str:
    """The lines of all results, in the order of their files' names."""
    rows = ["| what | peer | peer's | dvgen's | ratio |", "|---|---|---|---|---|"]
    for file in sorted(RESULTS.glob("*.json")):
        about = json.loads(file.read_text())
        page = file.with_suffix(".md").relative_to(ROOT)
        for claim in about["claims"]:
            cells = [f"[{claim['what']}]({page})", about["peer"], claim["theirs"], claim["ours"]]
            rows.append(f"| {' | '.join(cells)} | {Spread(**claim['ratio']):.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if options.check and made != text:
        sys.exit("README.md is not what benchmarks/results says: run python benchmarks/summary.py")
    if not options.check:
        README.write_text(made)


if __name__ == "__main__":
    main()
