"""The loop: weight 0 is plain EMP-SSL, 2 + 2 epochs are 4, a killed run loses nothing, two processes are one."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

import vfm4us
from tests.conftest import ROOT
from vfm4us import checkpoints
from vfm4us.augment import PatchSampler
from vfm4us.checkpoints import seen
from vfm4us.config import to_dict
from vfm4us.data import pools
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining import trainer
from vfm4us.pretraining.adversary import AdversaryConfig
from vfm4us.pretraining.masking import MaskingConfig
from vfm4us.pretraining.methods import emp_ssl
from vfm4us.pretraining.objective import MultiPatchLoss, patch_similarity, total_coding_rate
from vfm4us.pretraining.trainer import pretrain
from vfm4us.runtime.loop import cosine_with_warmup
from vfm4us.runtime.processes import average_gradients, processes
from vfm4us.runtime.rng import generator
from vfm4us.runtime.run import RunFolder


def last(folder):
    return checkpoints.read(folder / "checkpoints" / "last.pt")


def assert_same_weights(a, b):
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    assert torch.equal(a["resume"]["first_convolution"], b["resume"]["first_convolution"])


@pytest.fixture
def network_and_patches(tiny):
    config = tiny().emp_ssl
    torch.manual_seed(0)
    network = emp_ssl.Network(Encoder(EncoderSpec(in_channels=1)), config.projector).train()
    return config, network, torch.rand(3, 8, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def test_weight_0_is_plain_emp_ssl_bit_for_bit(network_and_patches):
    config, network, patches = network_and_patches
    config = dataclasses.replace(config, adversary=AdversaryConfig(weight=0.0), masking=MaskingConfig())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    draws = emp_ssl.Draws.of(config, generator(0), 8, "cpu")
    loss, _ = emp_ssl.compute_loss(network, MultiPatchLoss(), patches, config, draws)
    loss.backward()
    ours = {k: p.grad.clone() for k, p in network.named_parameters()}
    statistics = {k: v.clone() for k, v in network.named_buffers()}
    network.zero_grad()
    network.load_state_dict(before)
    z = F.normalize(network.projector(network.base_encoder(patches.flatten(0, 1))), dim=-1).view(3, 8, -1)
    plain = -200.0 * patch_similarity(z) - 1.0 * total_coding_rate(z).mean()
    plain.backward()
    assert torch.equal(loss, plain)
    assert all(torch.equal(ours[k], p.grad) for k, p in network.named_parameters())
    assert all(torch.equal(statistics[k], v) for k, v in network.named_buffers())


def test_the_adversary_changes_the_loss_but_not_the_running_statistics(network_and_patches):
    config, network, patches = network_and_patches
    other = emp_ssl.Network(Encoder(EncoderSpec(in_channels=1)), config.projector).train()
    other.load_state_dict(network.state_dict())
    draws = emp_ssl.Draws.of(config, generator(0), 8, "cpu")
    loss, terms = emp_ssl.compute_loss(network, MultiPatchLoss(), patches, config, draws)
    other(patches.flatten(0, 1))
    assert all(torch.equal(v, dict(other.named_buffers())[k]) for k, v in network.named_buffers())
    expected = MultiPatchLoss()(other(patches.flatten(0, 1)).view(3, 8, -1)).loss
    expected += 0.5 * (200 * (1 - terms["adversarial_similarity"]) - terms["adversarial_coding_rate"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["adversarial_similarity"] < terms["similarity"]


def test_vectors_are_learnt_at_their_own_share_of_the_rate(tiny):
    def moved(share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """How far a step from the same start took a kernel, and a batch-norm scale."""
        config = tiny(f"emp_ssl.optimizer.vector_rate={share}", f"name=share-{share}", "stop_after=1")
        trained = trainer.Trainer(config, torch.device("cpu"), 0, 1)
        body = trained.network.base_encoder.body
        before = body.conv1.weight.detach().clone(), body.bn1.weight.detach().clone()
        trained.update(trained.training[0].batch(np.arange(8)))
        trained.folder.close()
        return body.conv1.weight.detach() - before[0], body.bn1.weight.detach() - before[1]

    (kernel, whole), (same, tenth), (_, none) = moved(1.0), moved(0.1), moved(0.0)
    assert torch.equal(kernel, same) and kernel.abs().max() > 0
    assert whole.abs().max() > 0 and torch.allclose(tenth, whole / 10, rtol=1e-3, atol=1e-6) and not none.any()


def test_two_and_two_epochs_equal_four(tiny):
    whole = pretrain(tiny("name=whole"))
    parts = tiny("name=parts", "stop_after=1")
    for _ in range(4):  # the third begins with the second stage
        folder = pretrain(parts)
    assert_same_weights(last(whole), last(folder))
    assert last(folder)["resume"]["finished"]
    strip = [
        [{k: v for k, v in line.items()} for line in RunFolder(f, parts, main=False).metrics()] for f in (whole, folder)
    ]
    assert strip[0] == strip[1] and len([line for line in strip[0] if line["kind"] == "train"]) == 4 * 6


def test_a_run_killed_at_random_steps_ends_in_the_same_weights(tiny, tmp_path):
    whole = pretrain(tiny("name=whole"))
    config = tiny("name=killed", "save_minutes=0")
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, str(ROOT / "Pretraining/US-SSL/adv_main.py"), "--config", str(file)]
    folder, kills = tmp_path / "logs" / "killed", 0
    rng = random.Random(os.urandom(8))
    for wait_for in sorted(rng.sample(range(1, 22), 2)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(6000):
            steps = [json.loads(x)["step"] for x in _complete_lines(folder / "metrics.jsonl") if '"train"' in x]
            if process.poll() is not None or (steps and steps[-1] >= wait_for):
                break
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills, "the run ended before it could be killed"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    assert_same_weights(last(whole), last(folder))
    assert not list((folder / "checkpoints").glob(".*"))
    logs = [RunFolder(f, config, main=False).metrics() for f in (whole, folder)]
    assert logs[0] == logs[1]


def _complete_lines(path):
    return path.read_text().split("\n")[:-1] if path.is_file() else []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves(tiny, tmp_path, number, code):
    config = tiny("name=asked", "save_minutes=60")
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, str(ROOT / "Pretraining/US-SSL/adv_main.py"), "--config", str(file)]
    log = tmp_path / "logs" / "asked" / "metrics.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any('"train"' in line for line in _complete_lines(log)):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "the same command goes on" in out and "Traceback" not in err
    assert last(tmp_path / "logs" / "asked")["step"] >= 1


def test_the_number_of_workers_changes_nothing(tiny):
    one = pretrain(tiny("name=none", "num_workers=0", "stages.0.epochs=1", "stop_after=1"))
    two = pretrain(tiny("name=two", "num_workers=2", "stages.0.epochs=1", "stop_after=1"))
    assert_same_weights(last(one), last(two))


def test_a_changed_config_is_refused_and_resume_false_moves_the_old_run_aside(tiny):
    folder = pretrain(tiny("stop_after=1"))
    with pytest.raises(ValueError, match=r"stages.*learning_rate") as caught:
        pretrain(tiny("stages.1.learning_rate=0.01"))
    assert "resume=false" in str(caught.value)
    pretrain(tiny("stages.1.learning_rate=0.01", "resume=false", "stop_after=1"))
    (folder / "checkpoints" / "last.pt").unlink()
    pretrain(tiny("stop_after=1"))  # without a checkpoint there is nothing to lose
    assert (folder.with_name("tiny-old1") / "checkpoints" / "last.pt").is_file()


def test_the_run_folder_holds_what_a_reader_looks_for(tiny, capsys):
    folder = pretrain(tiny())
    for name in (
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "curve.png",
        "contact_sheet_coarse.png",
        "contact_sheet_fine.png",
        "leakage_coarse.csv",
        "encoder.pt",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "checkpoints/coarse.pt",
        "checkpoints/fine.pt",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert len(list(folder.glob("events.out.tfevents.*"))) >= 1
    assert len(list((folder / "checkpoints").glob("*_0*.pt"))) <= 4  # keep_last=2 of each stage
    lines = RunFolder(folder, None, main=False).metrics()
    measured = [line for line in lines if line["kind"] == "monitor"]
    assert {line["after"] for line in measured} == {"initial", "coarse", "fine"}
    assert {"knn", "effective_rank", "knn_patches", "effective_rank_patches"} <= measured[0].keys()
    pretrain(tiny())
    assert "is finished" in capsys.readouterr().out


def test_stages_start_from_the_weights_before(tiny):
    config = tiny("stages.1.learning_rate=0.0")
    folder = pretrain(config)
    first, last = (seen.seen(str(folder / "checkpoints" / f"{n}.pt")) for n in ("coarse", "fine"))
    assert 0 < len(first) < len(last) and np.isin(first, last).all(), "a stage's file says what it has seen until then"
    before, after = (checkpoints.read(folder / "checkpoints" / f"{n}.pt")["state_dict"] for n in ("coarse", "fine"))
    parameters = [k for k in before if k.startswith("module.base_encoder") and k.endswith("weight")]
    assert parameters and all(torch.equal(before[k], after[k]) for k in parameters)
    kept = checkpoints.read(folder / "checkpoints" / "fine.pt")["state_dict"]["module.projector.0.weight"]
    reset = pretrain(tiny("stages.1.learning_rate=0.0", "stages.1.projector=reset", "name=reset"))
    renewed = checkpoints.read(reset / "checkpoints" / "fine.pt")["state_dict"]["module.projector.0.weight"]
    assert torch.equal(kept, before["module.projector.0.weight"]) and not torch.equal(kept, renewed)


def test_encoder_weights_start_the_run_and_another_architecture_is_refused(tiny):
    folder = pretrain(tiny("stop_after=1"))
    weights = str(folder / "checkpoints" / "last.pt")
    pretrain(tiny(f"encoder.weights={weights}", "name=second", "stop_after=1"))
    with pytest.raises(ValueError, match="resnet18.*resnet34|resnet34.*resnet18"):
        pretrain(tiny(f"encoder.weights={weights}", "encoder.name=resnet34", "name=third"))


def test_a_loss_that_is_not_finite_stops_with_advice(tiny, monkeypatch):
    config = tiny("name=broken")
    real = emp_ssl.compute_loss

    def broken(*arguments):
        loss, terms = real(*arguments)
        return loss * float("nan"), terms

    monkeypatch.setattr(emp_ssl, "compute_loss", broken)
    with pytest.raises(FloatingPointError, match="stages.0.learning_rate"):
        pretrain(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.epochs=-1", "stages.0.epochs.*below"),
        ("emp_ssl.patches.size=64", "patches.size 64 is larger than the images"),
        ("batch_size=500", "fewer than batch_size"),
        ("stages.0.data.0.path=nowhere", r"stages.0.data.0.path.*does not exist"),
        ("stages.1.name=coarse", "different names"),
        ("emp_ssl.adversary.weight=0", "emp_ssl.masking.strategy=adversarial needs"),
        ("stages.0.replay=0.5", "stages.0.replay"),
        ("device=gpu", "device"),
        ("device=mps", "device"),
        ("name=../up", "name"),
        ("emp_ssl.masking.cell=40", "masking.cell 40 is larger"),
        ("precision=bfloat16", "wrong gradients on a CPU for crops of 16 px.*emp_ssl.patches.size"),
    ],
)
def test_bad_configs_name_the_key(tiny, override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(tiny(override))


def test_held_out_images_and_their_copies_never_enter_a_pool(tiny, textures, tmp_path):
    from PIL import Image

    shutil.copytree(textures / "one", tmp_path / "archive")
    images = sorted((tmp_path / "archive" / "rough").glob("*.png"))
    Image.open(images[0]).save(tmp_path / "archive" / "rough" / "copy.jpg", quality=92)
    rows = ["path,label,group,split"] + [f"{p.relative_to(tmp_path / 'archive')},x,{p.stem},train" for p in images[1:]]
    rows += [f"rough/{images[0].name},x,held,test", "rough/copy.jpg,x,other,train"]
    (tmp_path / "archive" / "manifest.csv").write_text("\n".join(rows))
    dataset = pools.open_or_prepare(tmp_path / "archive", tmp_path / "cache", 48)
    pool = pools.build_pool([pools.SourceConfig("archive")], [dataset])
    kept, leaks, checked = pools.remove_leaks(pool, [dataset])
    assert checked == 1 and len(kept) == len(pool) - 1
    assert "rough/copy.jpg" in leaks[0] and f"rough/{images[0].name}" in leaks[0]
    paths = {dataset.records[i].path for i in kept.index}
    assert "rough/copy.jpg" not in paths and f"rough/{images[0].name}" not in paths


def test_a_protected_set_that_is_no_source_keeps_its_images_out_of_the_pool_too(tiny, textures, tmp_path):
    guarded = tmp_path / "guarded" / "a"
    guarded.mkdir(parents=True)
    for path in sorted((textures / "one").rglob("*.png"))[:20]:
        (guarded / path.name).write_bytes(path.read_bytes())
    settings = tiny(f"data.protect=[{tmp_path}/guarded]", "stages.0.epochs=1", "stages.1.epochs=1")
    settings.data.splits = [0.4, 0.3, 0.3]
    folder = pretrain(settings)
    leaks = (folder / "leakage_coarse.csv").read_text().splitlines()[1:]
    assert any("guarded" in line for line in leaks) and all("identical" in line for line in leaks if "guarded" in line)


def test_a_three_channel_network_trains_and_is_saved_as_it_is(tiny):
    folder = pretrain(tiny("encoder.in_channels=3", "stages.0.epochs=1", "stages.1.epochs=1"))
    encoder = vfm4us.load_encoder(folder)
    kernel = encoder.body.conv1.weight
    assert kernel.shape[1] == 3 and not torch.equal(kernel[:, 0], kernel[:, 1]), "no third of one channel"


def test_epoch_order_gives_each_source_its_share_and_repeats_none_before_all():
    order = pools.epoch_order([10, 30], [0.5, 0.5], 40, (0, 1))
    assert len(order) == 40 and (order < 10).sum() == 20
    assert np.bincount(order, minlength=40)[:10].tolist() == [2] * 10
    assert np.array_equal(order, pools.epoch_order([10, 30], [0.5, 0.5], 40, (0, 1)))
    assert not np.array_equal(order, pools.epoch_order([10, 30], [0.5, 0.5], 40, (0, 2)))
    assert sorted(pools.epoch_order([3, 4], [3, 4], 7, (0,))) == list(range(7))
    assert pools.source_shares([100, 300], 0.0) == [0.25, 0.75]
    assert pools.source_shares([100, 300], 1.0) == [0.5, 0.5]


def test_cosine_with_warmup():
    rate = [cosine_with_warmup(s, 100, 0.1, 2.0) for s in range(100)]
    assert rate[0] == pytest.approx(0.2) and rate[9] == rate[10] == pytest.approx(2.0)
    assert all(a >= b for a, b in zip(rate[10:], rate[11:], strict=False)) and rate[-1] < 0.01


def _train_as_one_of_two(rank, config, folder):
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getppid() % 1000),
    }
    torch.set_num_threads(1)
    with processes("cpu") as (r, k):
        torch.save(_gradient(config, r, k), f"{folder}/rank{r}.pt")


def _gradient(config, rank, world_size):
    """Loss and averaged gradient of one step with batch-norm statistics frozen (torch has no SyncBatchNorm on CPU)."""
    torch.manual_seed(0)
    network = emp_ssl.Network(Encoder(EncoderSpec(in_channels=1)), config.projector).eval()
    images = torch.randint(0, 256, (8, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    valid = torch.tensor([[0, 0, 48, 48]]).expand(8, 4)
    draw = generator(1, 2, 3)
    patches = PatchSampler(config.patches)(images[share], valid[share], draw, rank, world_size)
    draws = emp_ssl.Draws.of(config, draw, 8 // world_size, "cpu", rank, world_size)
    loss, _ = emp_ssl.compute_loss(network, MultiPatchLoss(), patches, config, draws)
    loss.backward()
    average_gradients(list(network.parameters()))
    return {"loss": loss.detach()} | {k: p.grad for k, p in network.named_parameters()}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_two_processes_train_as_one(tiny, tmp_path, weight):
    # A step of the attack takes the sign of a gradient, which rounding can flip: here it stays at its random start.
    config = dataclasses.replace(
        tiny().emp_ssl,
        adversary=AdversaryConfig(weight=weight, step_size=0.0),
        masking=MaskingConfig("random", cell=4),
    )
    torch.multiprocessing.spawn(_train_as_one_of_two, (config, str(tmp_path)), nprocs=2)
    one = _gradient(config, 0, 1)
    for rank in range(2):
        theirs = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for key, value in one.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-5 * max(scale, 1e-3), msg=key)


def test_torchrun_with_two_processes(tiny, tmp_path):
    config = tiny("name=pair", "stop_after=1")
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "Pretraining/US-SSL/adv_main.py"),
        "--config",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out coarse images") == 2  # one process speaks
    assert last(tmp_path / "logs" / "pair")["step"] == 6


def test_a_run_does_not_go_on_with_other_images(tiny, textures, tmp_path):
    shutil.copytree(textures / "one", tmp_path / "one")
    source = f"stages.0.data.0.path={tmp_path / 'one'}"
    pretrain(tiny(source, "stop_after=1"))
    (tmp_path / "one" / "rough" / "000.png").unlink()
    with pytest.raises(ValueError, match="images of stage coarse have changed"):
        pretrain(tiny(source))


def test_a_folder_in_use_is_refused(tiny):
    config = tiny()
    first = RunFolder(Path(config.logs) / config.name, config)
    with pytest.raises(ValueError, match="in use by another process"):
        pretrain(config)
    first.close()
    pretrain(tiny("stop_after=1"))


def test_without_val_images_the_rank_is_still_measured(tiny, capsys):
    folder = pretrain(tiny("stop_after=1", "stages.0.data.0.split=all", "stages.1.data.0.split=all"))
    lines = [x for x in RunFolder(folder, None, main=False).metrics() if x["kind"] == "monitor"]
    assert lines and all("effective_rank" in x and "knn" not in x for x in lines)
    assert "stage coarse: 60 images to train on" in capsys.readouterr().out


def test_what_an_epoch_leaves_is_written_in_an_order_that_no_kill_can_break(tiny, monkeypatch):
    """last.pt first, and encoder.pt, by which a table knows that a run is done, after what it has cost."""
    config = tiny("stages.0.epochs=1", "stages.0.epoch_images=8", "stages.1.epochs=1", "stages.1.epoch_images=8")
    written, save, text = [], checkpoints.save, trainer.write_text
    stop_at = 0

    def note(path):
        written.append(path.name)
        if len(written) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", lambda path, state: (note(path), save(path, state)))
    monkeypatch.setattr(trainer, "write_text", lambda path, words: (note(path), text(path, words)))
    folder = pretrain(config)
    expected = ["last.pt", "best.pt", "coarse.pt", "coarse_0001.pt"]
    expected += ["last.pt", "best.pt", "fine.pt", "budget.json", "encoder.pt", "fine_0001.pt"]
    assert written == expected
    whole = checkpoints.read(folder / "encoder.pt")["state_dict"]
    for stop_at in (3, 9):
        written.clear()
        other = tiny(
            f"name=stopped-{stop_at}", *(f"stages.{i}.{k}" for i in (0, 1) for k in ("epochs=1", "epoch_images=8"))
        )
        with pytest.raises(KeyboardInterrupt):
            pretrain(other)
        assert not (folder.with_name(other.name) / "encoder.pt").exists()
        written[:] = [""] * 100  # no further kill
        again = pretrain(other)
        parts = checkpoints.read(again / "encoder.pt")["state_dict"]
        assert (again / "budget.json").is_file() and (again / "checkpoints" / "coarse.pt").is_file()
        assert all(torch.equal(v, parts[k]) for k, v in whole.items())


@pytest.mark.parametrize("rate", ["1.0e+6", "1.0e+20"])
def test_a_rate_that_is_far_too_high_ends_with_advice_and_never_as_finished(tiny, rate):
    short = ["stages.0.epochs=1", "stages.0.epoch_images=8", "stages.1.epochs=1", "stages.1.epoch_images=16"]
    config = tiny(f"stages.0.learning_rate={rate}", f"stages.1.learning_rate={rate}", *short)
    with pytest.raises(FloatingPointError, match=r"Nothing had been saved yet\. Lower stages\.0\.learning_rate"):
        pretrain(config)
    folder = Path(config.logs) / config.name
    assert not (folder / "encoder.pt").exists() and not (folder / "checkpoints" / "last.pt").exists()
