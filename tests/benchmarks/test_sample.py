"""benchmarks/sample.py: whole programs, on the same checkpoint, in turn."""

import json

import torch
from helpers.peer import make_peer
from helpers.programs import run_program

from benchmarks import sample

TOY = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, device="cpu", repeats=2)


def test_both_programs_sample_from_one_checkpoint(tmp_path, monkeypatch):
    peer, calls = make_peer(tmp_path / "peer"), []
    (peer / "sample.py").touch()

    def launch(command, folder, log):
        state = torch.load(folder / "ckpt.pt", weights_only=True)
        assert state["model"]["lm_head.weight"].shape == (50257, 16)
        calls.append(command)
        return 1.0 + len(calls)

    monkeypatch.setattr(sample, "launch", launch)
    there = dict(peer=str(peer), out=str(tmp_path / "out"), options="--num_samples=1")
    sample.main(**TOY, **there)
    ours = [str(sample.ROOT / "sample.py") == command[0] for command in calls]
    assert ours == [True, False, False, True]
    assert all(c[1:] == ["--out_dir=.", "--device=cpu", "--num_samples=1"] for c in calls)
    rows = json.loads((tmp_path / "out" / "sample.json").read_text())["rows"]
    assert [(r["name"], r["seconds"]["median"]) for r in rows] == [
        *(("sample.py", 3.5), ("nanoGPT's sample.py", 3.5))
    ]
    # what was cut short goes on, and what was measured otherwise begins anew
    state = {"rows": [rows[0], {**rows[1], "each": [3.0]}]}
    for more, count in (({}, 1), ({"force": True}, 4), ({"options": "--seed=1"}, 4)):
        (tmp_path / "out" / "sample.json").write_text(json.dumps(state))
        calls.clear()
        sample.main(**TOY, **{**there, **more})
        assert len(calls) == count, more


def test_the_program_writes_what_the_made_run_gives(tmp_path):
    sample.make_run(tmp_path, dict(n_layer=1, n_head=1, n_embd=16, block_size=16, vocab_size=99))
    words = ["--out_dir=.", "--num_samples=2", "--max_new_tokens=5", "--device=cpu"]
    done = run_program(words, tmp_path, program="sample.py")
    assert done.rc == 0 and any(ord(letter) > 0x20000 for letter in done.stdout), done
