"""Put the claims of benchmarks/results/*.json into the README, between its two marks.

    python benchmarks/summary.py [--check]

One line for each claim: what is compared, with whom, both figures, the ratio with its spread, and the processor's
kind. `--check` changes nothing and fails where the README says something else than the results.
"""

import argparse
import json
import re
import sys

from harness import RESULTS, ROOT, Spread

README = ROOT / "README.md"
BEGIN, END = "<!-- begin of the results of benchmarks -->", "<!-- end of the results of benchmarks -->"


DTYPES = ("float32", "bfloat16")


def cores(machine: str) -> str:
    """The widest instructions of the processor that a page names: what its times depend on most."""
    found = re.search(r"\((.*?)\)(?= *,| *processor|;)", machine.replace("(R)", ""))
    features = found[1] if found else ""
    return next((name for name in ("AMX", "no AVX-512", "AVX-512") if name in features), "")


def table() -> str:
    """The lines of all results, in the order of their files' names."""
    rows = ["| what | peer | peer's | dvgen's | ratio | on |", "|---|---|---|---|---|---|"]
    for file in sorted(RESULTS.glob("*.json")):
        about = json.loads(file.read_text())
        page = file.with_suffix(".md").relative_to(ROOT)
        dtype = file.stem.rpartition("_")[2]
        for claim in about["claims"]:
            what = claim["what"]
            if dtype in DTYPES and dtype not in what:
                what += f", {dtype}"
            cells = [f"[{what}]({page})", about["peer"], claim["theirs"], claim["ours"]]
            rows.append(f"| {' | '.join(cells)} | {Spread(**claim['ratio']):.2f} | {cores(about['machine'])} |")
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
