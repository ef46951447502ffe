"""Does `generate --loop` close the seam? A model's own surprise where a clip's end meets its beginning.

    python benchmarks/loop_seam.py --work runs/loops

The quickstart's own clips all begin alike, which real recordings do not. So its sounds are made three times as long, with
pulses a little out of time, and a model of the quickstart's size learns random crops of them. It then makes clips
straight and as loops, with the same captions and seeds. Each is turned by half, so that its ends meet in the middle; the
three frames on each side of the seam are hidden, codebook by codebook, and the model says how probable they are. The same
at a clip's own middle tells what is usual. A jump is the step from the last sample to the first over the mean step between
two samples: 1 is none, more is heard as a click. The oracle listens too, lest loops have forgotten their captions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from ablations import BATCH, command, fit_options, hardware
from torch import Tensor

from magnet_train import Magnet
from magnet_train.circular import decode_circular
from magnet_train.quickstart.score import Readings, accuracy, read_clips
from magnet_train.quickstart.world import Preset, ToneWorld

RESULTS = Path(__file__).parent / "results" / "loop_seam.json"
LONG = Preset(windows=3, pairs=0.0, onset=0.0, jitter=0.05)  # 3.84 s, of which training sees 1.28 s
CLIPS = {"train": 1000, "validation": 100}
HIDDEN = 3  # frames on each side of the seam


def train(work: Path, steps: int) -> Path:
    """Train on crops of long sounds, unless that has been done; return the checkpoint."""
    run = work / f"run-{steps}"
    if not (run / "last.ckpt").exists():
        world = ToneWorld()
        world.preset = LONG
        for split, count in CLIPS.items():
            shards = work / "shards" / split
            if not (shards / "manifest.json").exists():
                world.write(work / "audio" / split, count, split)
                audio = str(work / "audio" / split)
                command("tokenize", "--audio", audio, "--out", str(shards), "--codec", "quickstart")
        command("fit", *fit_options(work, run, "base", seed=0, steps=steps))
    return run / "last.ckpt"


@torch.inference_mode()
def surprise(magnet: Magnet, tokens: Tensor, texts: list[str]) -> Tensor:
    """Return float [K], mean nats of the tokens int64 [B, K, T] around the middle, each codebook given those below."""
    hidden, mask = magnet.text(texts)
    middle = slice(tokens.shape[-1] // 2 - HIDDEN, tokens.shape[-1] // 2 + HIDDEN)
    nats = []
    for stage in range(magnet.lm.n_q):
        shown = tokens.clone()
        shown[:, stage + 1 :] = magnet.lm.mask_id
        shown[:, stage, middle] = magnet.lm.mask_id
        logits = magnet.lm(shown, stage, hidden, mask)[:, middle]
        nats.append(F.cross_entropy(logits.flatten(0, 1), tokens[:, stage, middle].flatten()))
    return torch.stack(nats)


def measure(magnet: Magnet, clips: int, loop: bool) -> dict[str, object]:
    """Make clips and return the surprise at their seam and in their middle, and what the oracle hears."""
    captions = ToneWorld().captions(clips, "test")
    seam, usual, jumps = [], [], []
    readings: Readings = []
    for first in range(0, clips, BATCH):
        texts = [caption.text for caption in captions[first : first + BATCH]]
        tokens = magnet.generate_tokens(texts, seed=first, loop=loop)
        seam.append(surprise(magnet, tokens.roll(tokens.shape[-1] // 2, dims=-1), texts) * len(texts))
        usual.append(surprise(magnet, tokens, texts) * len(texts))
        audio = decode_circular(magnet.codec, tokens) if loop else magnet.codec.decode(tokens)
        readings += read_clips(audio[:, 0].numpy())
        jumps.append((audio[:, 0, 0] - audio[:, 0, -1]).abs() / audio[:, 0].diff().abs().mean(-1))
    return {
        "seam_nats": [round(x, 3) for x in (torch.stack(seam).sum(0) / clips).tolist()],
        "middle_nats": [round(x, 3) for x in (torch.stack(usual).sum(0) / clips).tolist()],
        "jump": round(float(torch.cat(jumps).mean()), 2),
        "accuracy": {name: round(value, 3) for name, value in accuracy(captions, readings).items()},
    }


def main() -> None:
    """Measure both kinds and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/loops"), help="folder for clips and run")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=240, help="of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the record goes")
    args = parser.parse_args()
    magnet = Magnet.from_pretrained(train(args.work, args.steps))
    record = {
        "hardware": hardware(),
        "steps": args.steps,
        "clips": args.clips,
        "straight": measure(magnet, args.clips, loop=False),
        "loop": measure(magnet, args.clips, loop=True),
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
