"""Does rescoring by an autoregressive model make better clips? The oracle listens, at several weights and steps.

    python benchmarks/rescoring.py --work runs/ablations
    python benchmarks/rescoring.py --work runs/tiny --tiny     # whether the script works

A MAGNeT of the quickstart's size is stopped early, so that there is something to gain. A MusicGen of about that size learns
more clips of the same world (of the 1,400 that MAGNeT has it soon knows every token by heart, and nothing else). Captions
that neither saw, of combinations that training had and of those it never had, are then generated with the same seeds at
each weight of the rescorer (0: without), with the quickstart's steps and with few.

The rescorer's own surprise at real clips says how much it knows, with the finer codebooks before its eyes, as in its
training, and without them, as when it rescores. "hiding" is the same MusicGen trained a little longer with finer codebooks
hidden in half of the clips, which a released one is not. What has been made already is used again.

Source: arXiv 2401.04577, section 3.4, which gives neither the weight nor what the rescorer reads in place of codebooks
that are not there yet.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ablations import BATCH, command, fit_options, hardware, make_shards, whole_clips
from rich.progress import track
from torch import Tensor
from transformers import (
    AutoConfig,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5EncoderModel,
)

from magnet_train import Magnet
from magnet_train.apps.quickstart.captions import Caption
from magnet_train.apps.quickstart.oracle import Readings, accuracy, chance, read_clips
from magnet_train.apps.quickstart.run import through_codec
from magnet_train.apps.quickstart.world import ToneWorld
from magnet_train.codecs import load_codec, packaged_codec
from magnet_train.masking import mask_for_stage
from magnet_train.pipeline.musicgen import MusicgenRescorer, delayed
from magnet_train.text.tokenizer import Tokenizer, folder_of

RESULTS = Path(__file__).parent / "results" / "rescoring.json"
SEED = 0
DIM, LAYERS, HEADS = 128, 4, 4  # as the quickstart's MAGNeT
LEARNING_RATE, WARM_UP, ROWS = 2e-3, 100, 16  # likewise; clips in a batch
HIDDEN = 0.5  # share of the clips whose finer codebooks are hidden in the training of the second rescorer
VALIDATION = 160  # clips
WEIGHTS = {"musicgen": (0.25, 0.5, 0.75, 1.0), "hiding": (0.5, 1.0)}
STEPS = {"usual": (10, 4, 4, 4), "few": (3, 2, 2, 2)}  # the quickstart's, and about as few as can be ranked
CAPTIONS = {"seen": 180, "unseen": 96}
ROUNDS = 1  # seeds that each caption is generated with


def clips(work: Path, count: int, split: str) -> tuple[Tensor, list[str]]:
    """Return tokens int64 [N, K, T] and captions of the first clips of a split, encoding them if nobody has."""
    file = work / f"{split}-{count}.pt"
    captions = [caption.text for caption in ToneWorld().captions(count, split)]
    if not file.exists():
        codec = load_codec("quickstart")
        sounds = torch.stack([torch.from_numpy(audio) for _, audio in ToneWorld().clips(count, split)])
        batches = track(sounds[:, None].split(BATCH), f"encode {split}")
        torch.save(torch.cat([codec.encode(batch) for batch in batches]), file)
    return torch.load(file, weights_only=True), captions


def new_musicgen() -> MusicgenForConditionalGeneration:
    """Build a random MusicGen around the packaged codec, with the quickstart's text encoder."""
    codec = EncodecModel.from_pretrained(packaged_codec())
    decoder = MusicgenDecoderConfig(
        vocab_size=codec.config.codebook_size,
        num_codebooks=codec.config.num_quantizers,
        hidden_size=DIM,
        ffn_dim=4 * DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        dropout=0.0,
        pad_token_id=codec.config.codebook_size,
        bos_token_id=codec.config.codebook_size,
    )
    return MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel(AutoConfig.from_pretrained(folder_of("quickstart"))),
        audio_encoder=codec,
        decoder=MusicgenForCausalLM(decoder),
    )


def hide_finer(tokens: Tensor, card: int) -> Tensor:
    """Hide, in a share of the clips [B, K, T], the codebooks above one that is drawn; return a copy."""
    stages = torch.randint(tokens.shape[1], (len(tokens), 1, 1))
    whole = torch.rand(len(tokens), 1, 1) >= HIDDEN
    finer = torch.arange(tokens.shape[1])[:, None] > stages
    return tokens.masked_fill(finer & ~whole, card)


def train_musicgen(work: Path, count: int, steps: int, start: Path | None = None) -> Path:
    """Train a MusicGen, or a trained one further with finer codebooks hidden, unless that has been done.

    Returns:
        Its folder.
    """
    folder = work / (f"musicgen-{count}-{steps}" if start is None else f"{start.name}-hiding-{steps}")
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(SEED)
    model = new_musicgen() if start is None else MusicgenForConditionalGeneration.from_pretrained(start)
    tokenizer = Tokenizer("quickstart", max_length=256)
    everything, captions = clips(work, count, "train")
    n_q, frames = everything.shape[1:]
    card = model.config.decoder.vocab_size
    model.audio_encoder.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, (0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=min(WARM_UP / steps, 0.5), cycle_momentum=False
    )
    model.train()
    order = torch.cat([torch.randperm(count) for _ in range(-(-steps * ROWS // count))])
    for rows in track(order[: steps * ROWS].split(ROWS), folder.name):
        tokens = everything[rows]
        read = tokens if start is None else hide_finer(tokens, card)
        ids, mask = tokenizer([captions[row] for row in rows.tolist()])
        logits = model(
            input_ids=ids,
            attention_mask=mask.long(),
            decoder_input_ids=delayed(read, card, frames + n_q - 1).flatten(0, 1),
        ).logits.unflatten(0, (-1, n_q))  # [B, K, columns, card]
        own = torch.stack([logits[:, k, k : k + frames] for k in range(n_q)], dim=1)  # [B, K, T, card]
        # What is hidden, and so is card, is not to be predicted.
        loss = F.cross_entropy(own.flatten(0, 2), read.flatten(), ignore_index=card)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    return folder


def surprise(work: Path, rescorer: MusicgenRescorer) -> dict[str, list[float]]:
    """Return mean nats a token of each codebook of validation clips, finer codebooks shown and hidden."""
    tokens, captions = clips(work, VALIDATION, "validation")
    judge = rescorer.for_texts(captions)
    nothing = torch.zeros(tokens.shape[::2], dtype=torch.bool)
    nats: dict[str, list[float]] = {"finer_shown": [], "finer_hidden": []}
    for stage in range(rescorer.n_q):
        hidden = mask_for_stage(tokens, nothing, stage, rescorer.card)
        for name, read in (("finer_shown", tokens), ("finer_hidden", hidden)):
            nats[name].append(round(-float(judge(read, stage).log().mean()), 3))
    return nats


def generate(magnet: Magnet, captions: list[Caption], rounds: int, **options: Any) -> Readings:
    """Generate every caption so many times and let the oracle listen."""
    readings: Readings = []
    for first in range(0, len(captions) * rounds, BATCH):
        texts = [caption.text for caption in (captions * rounds)[first : first + BATCH]]
        readings += read_clips(magnet.generate(texts, seed=SEED + first, **options)[:, 0].numpy())
    return readings


def scores(captions: list[Caption], readings: Readings) -> dict[str, float]:
    """Return how often each attribute, and the whole clip, is right, 0..1."""
    named = accuracy(captions, readings) | {"whole": whole_clips(captions, readings)}
    return {name: round(value, 4) for name, value in named.items()}


def measure(
    magnet: Magnet, rescorers: dict[str, MusicgenRescorer], counts: dict[str, int], rounds: int
) -> dict[str, Any]:
    """Return, by kind of captions, steps, rescorer and weight, what the oracle hears, beside chance and ceiling."""
    result: dict[str, Any] = {}
    world, codec = ToneWorld(), load_codec("quickstart")
    for kind, count in counts.items():
        unseen = kind == "unseen"
        captions = world.captions(count, "test", unseen=unseen)
        asked = captions * rounds
        real = [audio for _, audio in world.clips(count, "test", unseen=unseen)]
        result[kind] = {"ceiling": scores(captions, read_clips(through_codec(codec, real)))}
        for name, steps in STEPS.items():
            decoding = replace(magnet.decoding, decoding_steps=steps)
            plain = generate(magnet, captions, rounds, decoding=decoding)
            rows: dict[str, Any] = {"0": scores(asked, plain)}
            if name == "usual":
                result[kind]["chance"] = {key: round(x, 4) for key, x in chance(asked, plain, SEED).items()}
            for which, rescorer in rescorers.items():
                for weight in WEIGHTS[which]:
                    mixed = replace(decoding, rescorer_weight=weight)
                    readings = generate(magnet, captions, rounds, decoding=mixed, rescorer=rescorer)
                    rows.setdefault(which, {})[f"{weight:g}"] = scores(asked, readings)
            result[kind][name] = rows
            print(json.dumps({kind: {name: rows}}, indent=1), flush=True)
    return result


def seconds_per_clip(magnet: Magnet, rescorer: MusicgenRescorer) -> dict[str, float]:
    """Return CPU time (s) a clip with and without the rescorer, at the quickstart's steps."""
    texts = [caption.text for caption in ToneWorld().captions(BATCH, "test")]
    took = {}
    for name, model in (("without", None), ("with", rescorer)):
        began = time.process_time()
        magnet.generate_tokens(texts, seed=SEED, rescorer=model)
        took[name] = round((time.process_time() - began) / BATCH, 4)
    return took


def main() -> None:
    """Train both models, generate, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), help="folder for shards and runs"
    )
    parser.add_argument(
        "--base-steps", type=int, default=300, help="training steps of MAGNeT (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=1000, help="training steps of MusicGen (default: %(default)s)"
    )
    parser.add_argument(
        "--clips", type=int, default=6000, help="clips that MusicGen learns from (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="clips of a caption (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="few steps and clips; its numbers mean nothing")
    parser.add_argument("--out", type=Path, help="where the record goes (default: benchmarks/results)")
    args = parser.parse_args()
    counts = CAPTIONS
    if args.tiny:
        args.base_steps, args.steps, args.clips, args.rounds = 3, 3, 32, 1
        counts = {"seen": 12, "unseen": 12}
    torch.set_num_threads(1)
    make_shards(args.work)
    base = args.work / f"base-{args.base_steps}-{SEED}"
    if not (base / "last.ckpt").exists():
        command("fit", *fit_options(args.work, base, "base", SEED, args.base_steps))
    began = time.monotonic()
    musicgen = train_musicgen(args.work, args.clips, args.steps)
    hiding = train_musicgen(args.work, args.clips, args.steps // 3, start=musicgen)
    rescorers = {
        "musicgen": MusicgenRescorer.from_pretrained(musicgen),
        "hiding": MusicgenRescorer.from_pretrained(hiding),
    }
    minutes = (time.monotonic() - began) / 60
    magnet = Magnet.from_pretrained(base / "last.ckpt")
    record: dict[str, Any] = {
        "hardware": hardware(),
        "base_steps": args.base_steps,
        "musicgen_steps": args.steps,
        "musicgen_clips": args.clips,
        "musicgen_minutes": round(minutes, 1),
        "decoding_steps": STEPS,
        "captions": counts,
        "rounds": args.rounds,
        "nats": {name: surprise(args.work, rescorer) for name, rescorer in rescorers.items()},
        "seconds_per_clip": seconds_per_clip(magnet, rescorers["musicgen"]),
    }
    print(json.dumps(record, indent=1), flush=True)
    record |= measure(magnet, rescorers, counts, args.rounds)
    out = args.out or (args.work / "rescoring.json" if args.tiny else RESULTS)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
