"""projects/image_bytes and projects/sound_bytes."""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from helpers.programs import ROOT, assert_one_line_error, program_module, run_command
from helpers.settings import settings

PIL = pytest.importorskip("PIL.Image", reason="pillow is not installed")


IMAGES, SOUND = "projects/image_bytes/image_bytes.py", "projects/sound_bytes/sound_bytes.py"


def script(path: str, cwd: Path, *options: str):
    return run_command([sys.executable, str(ROOT / path), *options], cwd, timeout=300)


# ---- pictures ----


@pytest.mark.parametrize(
    "order, patch, size", [("raster", 2, 3), ("raster", 4, 12), ("squares", 2, 12)]
)
def test_a_layout_is_undone(order, patch, size):
    images = program_module(IMAGES)
    layout = images.Layout(4, 3, order == "squares", patch)
    assert layout.patch_size == {3: 6, 12: 12}[size]
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    rows = layout.rows(pictures)
    assert rows.shape == (5, 48) and np.array_equal(layout.pictures(rows), pictures)
    first = pictures[:, :2, :2] if order == "squares" else pictures[:, :1, :patch]
    assert np.array_equal(rows[:, : layout.patch_size], first.reshape(5, -1))


def test_imagenet64s_planes_become_pixels(tmp_path):
    images = program_module(IMAGES)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    planes = pixels.transpose(0, 3, 1, 2).reshape(7, -1)
    np.savez(tmp_path / "train_data_batch_1.npz", data=planes, labels=np.arange(7))
    np.savez(tmp_path / "val_data.npz", data=planes[:2], labels=np.arange(2))
    files = sorted(tmp_path.glob("*.npz"))
    splits = dict(images.imagenet64(files, 8))
    assert np.array_equal(splits["train"], pixels) and np.array_equal(splits["val"], pixels[:2])
    halves = dict(images.imagenet64(files, 4))["train"]
    means = pixels.reshape(7, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert np.abs(halves - means).max() <= 1


def make_pictures(folder: Path, sizes) -> None:
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for i, (h, w) in enumerate(sizes):
            shades = (
                np.linspace(0, 255, w).astype(np.uint8)[None, :, None].repeat(h, 0).repeat(3, 2)
            )
            noise = rng.integers(0, 20, (h, w, 3), dtype=np.uint8)
            PIL.fromarray(shades // 2 + noise).save(folder / split / f"{i}.png")


def test_a_folder_of_pictures_from_start_to_completions(tmp_path):
    """Other sizes are resized; bits per byte are printed; the picture is there."""
    make_pictures(tmp_path / "in", [(4, 4)] * 6 + [(9, 5)])
    options = ["--source=in", "--size=4", "--patch=2", "--steps=3", "--shown=2", "--samples=2"]
    result = script(IMAGES, tmp_path, *options, "--out_dir=out")
    assert result.rc == 0, result
    assert "2 of 14 pictures are not 4 x 4" in result.stdout
    assert "bits per byte on 7 pictures held out" in result.stdout
    with PIL.open(tmp_path / "out" / "completions.png") as picture:
        assert picture.width > 100
    meta = json.loads((tmp_path / "out" / "data" / "meta.json").read_text())
    assert meta["row_length"] == 49 and meta["splits"]["train"]["documents"] == 7
    again = script(IMAGES, tmp_path, *options, "--out_dir=out", "--patch=4")
    assert_one_line_error_at_the_end(again, "was trained with patch_size=6, not 12")


def assert_one_line_error_at_the_end(result, *words: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert result.rc == 1 and lines[-1].startswith("error: "), result
    assert all(word in lines[-1] for word in words), result


@pytest.mark.parametrize(
    "options, words",
    [
        (["--source=nowhere"], ["source=nowhere", "photo"]),
        (["--source=empty"], ["no picture", "empty"]),
        (["--source=broken"], ["bad.png"]),
        (["--source=odd"], ["val.npz", "uint8"]),
        (["--size=10", "--patch=3"], ["patch=3", "10 pixels"]),
        (["--order=spiral"], ["order=spiral", "squares"]),
        (["--given=1.5"], ["given=1.5"]),
        (["--size=1"], ["size=1"]),
    ],
    ids=str,
)
def test_mistakes_with_pictures_are_one_line(options, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "odd").mkdir()
    np.savez(tmp_path / "odd" / "val.npz", data=np.zeros((2, 5), np.uint8))
    assert_one_line_error(script(IMAGES, tmp_path, *options), *words)


@pytest.mark.parametrize("path, ending", [(IMAGES, ".png"), (SOUND, ".wav")])
def test_linked_folders_are_read_and_empty_and_hidden_files_left_out(
    tmp_path, capsys, path, ending
):
    """As by data/custom/prepare.py: one download that broke off does not end it all."""
    program = program_module(path)
    for name in ("in/a", "elsewhere/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if ending == ".png":
            PIL.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{name}.png")
        else:
            save_wav(tmp_path / f"{name}.WAV", np.zeros((50, 1)), 1, 4000)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / f"empty{ending}").touch()
    (tmp_path / "in" / f"._a{ending}").write_bytes(b"of a Mac")
    c = settings(path, [f"--source={tmp_path / 'in'}"])
    if ending == ".png":
        read = sum(len(p) for _, p in program.folder_of_pictures(c, tmp_path / "in", 4))
    else:
        read = len(list(program.sounds(c)))
    assert read == 2 and "empty files left out: 1" in capsys.readouterr().out


# ---- sound ----


def save_wav(path: Path, x: np.ndarray, width: int, rate: int) -> None:
    """x (n, channels) in [-1, 1] as PCM of `width` bytes."""
    if width == 1:
        data = np.round(128 + 127 * x).astype(np.uint8).tobytes()
    else:
        wide = np.round(x * (2**31 - 1)).astype("<i4").reshape(-1, 1).view(np.uint8)
        data = wide[:, 4 - width :].tobytes()
    with wave.open(str(path), "wb") as f:
        f.setnchannels(x.shape[1])
        f.setsampwidth(width)
        f.setframerate(rate)
        f.writeframes(data)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [4000, 8000, 11025, 2000])
def test_any_wav_becomes_the_same_bytes(tmp_path, width, channels, rate):
    """A tone of 100 Hz as 8, 16, 24 and 32 bits, mono and stereo, at several rates."""
    sound = program_module(SOUND)
    t = np.arange(rate) / rate
    x = (0.8 * np.sin(2 * np.pi * 100 * t))[:, None].repeat(channels, 1)
    save_wav(tmp_path / "x.wav", x, width, rate)
    samples = sound.read_wav(tmp_path / "x.wav", sound.rate).astype(float)
    assert len(samples) == 4000 and samples.dtype == float
    # the mean over a sample's time delays by half a sample less its own
    delay = 0 if rate <= 4000 else 0.5 / 4000 - 0.5 / rate
    want = 128 + 127 * 0.8 * np.sin(2 * np.pi * 100 * (np.arange(4000) / 4000 + delay))
    assert np.abs(samples - want)[20:-20].max() < (1.1 if rate == 4000 else 5)


def test_bytes_stay_as_they_are(tmp_path):
    sound = program_module(SOUND)
    data = np.arange(256, dtype=np.uint8)
    sound.write_wav(tmp_path / "x.wav", data, sound.rate)
    assert np.array_equal(sound.read_wav(tmp_path / "x.wav", sound.rate), data)


def test_sound_from_start_to_wav(tmp_path):
    options = ["--tunes=3", "--steps=2", "--given=0.1", "--seconds=0.05", "--shown=2"]
    result = script(SOUND, tmp_path, *options)
    assert result.rc == 0 and "bits per byte on" in result.stdout, result
    original, made = (
        program_module(SOUND).read_wav(tmp_path / "out-sound" / f"0_{n}.wav", 4000)
        for n in ("original", "continued")
    )
    assert len(original) == len(made) == 600 and np.array_equal(original[:400], made[:400])
    assert (tmp_path / "out-sound" / "waves.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "options, words",
    [
        (["--source=empty"], ["no WAV file"]),
        (["--source=broken"], ["bad.wav", "PCM"]),
        (["--source=silent"], ["none.wav", "no sound"]),
        (["--rate=0"], ["rate"]),
    ],
    ids=str,
)
def test_mistakes_with_sound_are_one_line(options, words, tmp_path):
    for name in ("empty", "broken", "silent"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "bad.wav").write_bytes(b"RIFF of another kind")
    save_wav(tmp_path / "silent" / "none.wav", np.zeros((0, 1)), 2, 8000)
    assert_one_line_error(script(SOUND, tmp_path, *options), *words)
