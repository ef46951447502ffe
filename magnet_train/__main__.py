"""`python -m magnet_train` is the same as `magnet-train`."""

from magnet_train.cli.main import run

if __name__ == "__main__":
    run()
