"""Build the images where no Docker runs and no registry is reached, and run what was built as its own metadata says.

buildah builds from the Dockerfiles as they are, on a stand-in for their base image that mmdebstrap makes of Debian's
packages (Python 3.11 instead of 3.12). What runs afterwards is the image's entrypoint, as the image's user and with the
image's environment: in namespaces of its own, with a root that cannot be written to and no network but loopback.

    make images                              both images
    python docker/build_here.py --only service

Needs root, buildah, mmdebstrap, and what the build itself needs: Debian's packages and PyPI, or wheels in $PIP_FIND_LINKS.
What this cannot show: Docker's own runtime, the GPU, and the real base image.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = "localhost/whatfits-base:bookworm"
BASE_PACKAGES = "python3,python3-venv,python3-dev,ca-certificates,passwd"
CERTIFICATES = "/etc/ssl/certs"
PROGRAMS = ("buildah", "mmdebstrap", "unshare", "ip", "chroot")

# What is run in each image: `$entrypoint` and `$command` are the image's, `$health` is its health check.
TRIALS = {
    "service": """
        $entrypoint --version
        $entrypoint plan llama-13b --gpus 8xa100-80gb --limit 1 > /dev/null
        ! python -c 'import torch' 2> /dev/null
        WHATFITS_PUBLISHED_ON=loopback $entrypoint $command & server=$!
        for _ in $(seq 60); do sleep 1; $health 2> /dev/null && healthy=yes && break; done
        test "${healthy:-}" = yes
        kill $server
        echo 'the health check passes'
    """,
    "agent": """
        $entrypoint --version
        $entrypoint agent --help > /dev/null
        $entrypoint measure /tmp/run.json --layers 1 --steps 2 --warmup 1 > /dev/null
        echo 'a measurement was made'
        python /tmp/compiled.py
        echo 'an optimizer was compiled'
        $entrypoint estimate --model /tmp/config.json --gpus 1xa100-80gb > /dev/null
        echo 'a model that nobody had traced was answered'
    """,
}
# Files that trials find in /tmp.
FILES = {
    "run.json": """
        {"model": "llama-60m", "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 1},
         "training": {"precision": "fp32", "seq_len": 32, "optimizer": {"name": "adamw"}}}
    """,
    "config.json": """
        {"model_type": "mistral", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 321,
         "num_attention_heads": 4, "num_key_value_heads": 2}
    """,
    "compiled.py": """
import torch
from whatfits.optim_impls import build_optimizer

model = torch.nn.Linear(4096, 64)
optimizer = build_optimizer("adamw_4bit", model, lr=1e-3)
model(torch.randn(2, 4096)).sum().backward()
optimizer.step()
""",
}
# What holds in every image.
COMMON = """
    set -eu
    test "$(id -u):$(id -g)" = 10001:10001
    ! touch /opt/whatfits/written 2> /dev/null
    ! (echo > /dev/tcp/192.0.2.1/80) 2> /dev/null
"""


class BuildError(Exception):
    """The images cannot be built or do not run here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """buildah with its images in a folder of their own."""

    folder: Path

    def run(self, *arguments: str, capture: bool = False) -> str:
        store = ["--root", str(self.folder / "images"), "--runroot", str(self.folder / "run")]
        command = ["buildah", *store, "--storage-driver", "vfs", *arguments]
        return _run(command, capture=capture)

    def has(self, image: str) -> bool:
        listed = json.loads(self.run("images", "--json", capture=True) or "null")
        return any(image in (entry.get("names") or ()) for entry in listed or ())

    def make_base(self) -> None:
        """Debian with its own Python, under a name that the Dockerfiles are told of."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            archive = Path(folder) / "base.tar"
            _run(
                [
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    f"--include={BASE_PACKAGES}",
                    "bookworm",
                    str(archive),
                ]
            )
            container = self.run("from", "scratch", capture=True).strip()
            self.run("add", "--quiet", container, str(archive), "/")
            self.run("commit", "--quiet", "--rm", container, BASE)

    def build(self, name: str) -> str:
        """The image of a Dockerfile."""
        image = f"localhost/whatfits-{name}:here"
        wheels = [path for path in os.environ.get("PIP_FIND_LINKS", "").split() if Path(path).is_dir()]
        volumes = [option for path in (CERTIFICATES, *wheels) for option in ("--volume", f"{path}:{path}:ro")]
        arguments = {"BASE": BASE, "PIP_FIND_LINKS": " ".join(wheels)}
        given = [option for key, value in arguments.items() for option in ("--build-arg", f"{key}={value}")]
        # Docker's format, because the other one has no health checks.
        self.run("bud", "--isolation", "chroot", "--format", "docker", *given, *volumes,
                 "--file", str(ROOT / f"docker/{name}.Dockerfile"), "--tag", image, str(ROOT))  # fmt: skip
        return image

    def try_image(self, name: str, image: str) -> None:
        """Run an image's trial in a container that is removed afterwards."""
        config = json.loads(self.run("inspect", "--type", "image", image, capture=True))["Docker"]["config"]
        container = self.run("from", image, capture=True).strip()
        try:
            root = self.run("mount", container, capture=True).strip()
            _run_isolated(Path(root), config, trial_script(TRIALS[name], config))
        finally:
            self.run("rm", container, capture=True)


def trial_script(trial: str, config: dict[str, Any]) -> str:  # Any: the image's configuration as JSON
    """A trial with the image's own commands in it."""
    health = (config.get("Healthcheck") or {}).get("Test") or ["CMD", "false"]
    commands = {"entrypoint": config["Entrypoint"], "command": config["Cmd"], "health": health[1:]}
    script = COMMON + trial
    for name, command in commands.items():
        script = script.replace(f"${name}", shlex.join(command))
    return script


def _run_isolated(root: Path, config: dict[str, Any], script: str) -> None:  # Any: as above
    """Run a script in an image: its user and environment, a root that is read only, an own loopback and nothing else."""
    environment = ["env", "-i", *config["Env"]]
    inside = [*environment, "bash", "-c", script]
    user, _, group = config["User"].partition(":")
    entered = shlex.join(["chroot", f"--userspec={user}:{group}", str(root), *inside])
    where = shlex.quote(str(root))
    written = "\n".join(f"echo {shlex.quote(text)} > {where}/tmp/{name}" for name, text in FILES.items())
    setup = f"""
        set -eu
        mount --bind {where} {where}
        mount -o remount,bind,ro {where}
        mount -t tmpfs -o mode=1777 tmpfs {where}/tmp
        mount -t tmpfs -o uid={user},gid={group},mode=0700 tmpfs {where}/data
        mount -t proc proc {where}/proc
        mount --rbind /dev {where}/dev
        ip link set lo up
        {written}
        exec {entered}
    """
    _run(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", setup])


def _run(command: list[str], *, capture: bool = False) -> str:
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        raise BuildError(f"{' '.join(command)[:200]} ended with status {done.returncode}")
    return done.stdout or ""


def check_machine() -> None:
    """See that the images can be built here.

    Raises:
        BuildError: Something is missing.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise BuildError(
            f"missing: {', '.join(missing)} (apt-get install buildah mmdebstrap iproute2 util-linux)"
        )
    if os.getuid() != 0:
        raise BuildError("building without Docker mounts and changes users, which takes root")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=TRIALS, help="one image alone")
    default = Path(tempfile.gettempdir()) / "whatfits-images"
    parser.add_argument("--folder", type=Path, default=default, help="where images and layers are kept")
    arguments = parser.parse_args()
    try:
        check_machine()
        arguments.folder.mkdir(parents=True, exist_ok=True)
        builder = Builder(folder=arguments.folder)
        if not builder.has(BASE):
            builder.make_base()
        for name in [arguments.only] if arguments.only else TRIALS:
            print(f"== {name}", flush=True)
            builder.try_image(name, builder.build(name))
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
