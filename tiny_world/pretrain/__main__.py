"""``python -m tiny_world.pretrain``: trains the world's model from nothing, or goes on where it stopped."""

import argparse
import json
from pathlib import Path

import torch

from tiny_world.letters import LETTERS
from tiny_world.pretrain import autoencoder, flow, model, text
from tiny_world.prompts import WORLDS, every_prompt, letter_rows, sign, unquoted_words, words


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny_world.pretrain", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="small")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; holds checkpoints and the pipeline")
    parser.add_argument("--init", type=Path, help="a finished pipeline to start from instead of random weights")
    parser.add_argument("--width", type=int, default=128, help="hidden size of the transformer, a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=9000, help="steps of the flow stage")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=60_000, help="pictures in the training set")
    parser.add_argument("--signs", type=float, default=0.5, help="pictures of signs for one of shapes")
    parser.add_argument("--singles", type=float, default=0.1, help="share of single objects and letters among them")
    parser.add_argument("--letter-rows", type=int, default=3000, help="signs of random letters, beside the words")
    parser.add_argument("--wrong-captions", type=float, default=0.38, help="share of captions that misdescribe")
    parser.add_argument("--naming", type=float, default=0.1, help="weight of the loss that names each patch")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of the flow stage, at its height")
    parser.add_argument("--bfloat16", action="store_true", help="forward passes of the flow stage in bfloat16")
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--text-steps", type=int, default=600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    world = WORLDS[options.world]
    shapes, signs = list(every_prompt(world)), [sign(text) for text in (*LETTERS, *words())]
    vocabulary = unquoted_words(shapes + signs)
    prompts = shapes + signs + [sign(text) for text in letter_rows(options.letter_rows, vocabulary)]
    prepared, finished = options.out / "prepared", options.out / "pipeline"
    if (prepared / "model_index.json").exists():
        pipe = model.load(prepared)
    elif options.init:
        pipe = model.load(options.init)
        if any(len(pipe.tokenizer.tokenize(word)) > 1 for word in vocabulary):
            # A model of shapes learns the signs: what it has learned already stays as it is.
            texts = [prompt["prompt"] for prompt in shapes]
            with torch.no_grad():
                known = dict(zip(texts, zip(*text.embed(pipe, texts), strict=True), strict=True))
            model.teach_words(pipe, vocabulary, options.out)
            scenes = autoencoder.Pictures(prompts, world, options.seed)
            autoencoder.train(pipe.vae, scenes, options.autoencoder_steps, 16, options.seed, decoder_only=True)
            text.train(pipe, world, prompts, options.text_steps, options.seed, known)
        pipe.save_pretrained(prepared)
    else:
        torch.manual_seed(options.seed)
        pipe = model.pipeline(vocabulary, options.out, options.width, options.layers, world.size)
        scenes = autoencoder.Pictures(prompts, world, options.seed)
        autoencoder.train(pipe.vae, scenes, options.autoencoder_steps, 16, options.seed, decoder_only=False)
        text.train(pipe, world, prompts, options.text_steps, options.seed)
        pipe.save_pretrained(prepared)
    settings = flow.FlowSettings(
        steps=options.steps,
        batch=options.batch,
        scenes=options.scenes,
        signs=options.signs,
        singles=options.singles,
        wrong_captions=options.wrong_captions,
        learning_rate=options.learning_rate,
        naming=options.naming,
        bfloat16=options.bfloat16,
        seed=options.seed,
    )
    flow.train(pipe, world, prompts, settings, options.out, options.device)
    pipe.to(torch.float16).save_pretrained(finished)
    forget_paths(finished)


def forget_paths(folder: Path) -> None:
    """Takes the folders of this machine, which diffusers notes down, out of a saved pipeline."""
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
