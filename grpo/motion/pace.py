"""`python -m grpo.motion.pace MODEL OUT POSITIONS_HZ` copies a Qwen2.5-VL model that counts a clip's seconds faster.

A code step of a stream has as many positions as tokens. Where the clip has as many in that time, what is seen lies as
far before its motion in all steps of a sequence, and one look back finds it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("positions_hz", type=int, help="positions of a second of a clip")
    args = parser.parse_args()
    shutil.copytree(args.model, args.out, dirs_exist_ok=True)
    file = args.out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["vision_config"]["tokens_per_second"] = args.positions_hz
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
