"""`python -m dvgen`."""

from dvgen.main import run

if __name__ == "__main__":
    run()
