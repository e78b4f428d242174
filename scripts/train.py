"""What `accelerate launch` starts.

accelerate launch scripts/train.py RECIPE [KEY.PATH=VALUE]... [--run DIR]
"""

import sys

from align.app.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
