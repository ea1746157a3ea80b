# SPDX-License-Identifier: Apache-2.0
"""Command line of the local nodes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import engine_images, nodes
from .host import install_packages, podman
from .model_hub import MODELS, models_of_inventory, remove_model_hub, run_model_hub
from .recipes import DEFAULT
from .settings import PREFIX, cache_dir, ssh_key
from .shell import LocalNodesError, say
from .vendor_packages import repositories
from .vendor_repository import ensure_vendor_repository, remove_vendor_repository, url


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="local_nodes", description="Real systemd nodes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("host-setup", help="install the packages of this machine that local nodes need")
    images = commands.add_parser("images", help="have the engine images in the local image registry")
    images.add_argument("name", nargs="*", help="names of images, or `all`; default what llama.cpp services need")
    hub = commands.add_parser("model-hub", help="serve models as the Hugging Face Hub and the Ollama registry do")
    hub.add_argument("name", nargs="*", help="names of models, or `all`; small files are always there")
    commands.add_parser("vendor-repository", help="serve signed apt repositories of stand-in vendor packages")
    start = commands.add_parser("up", help="bring up the nodes of an inventory")
    start.add_argument("set", help="name of the set of nodes")
    start.add_argument("--inventory", type=Path, required=True, help="YAML inventory with ansible_host addresses")
    start.add_argument("--images", action="store_true", help="also have registry, engine images and model hub")
    stop = commands.add_parser("down", help="remove the nodes of a set")
    stop.add_argument(
        "set", help="name of the set of nodes, or `all`; with the last set the servers and the network go too"
    )
    commands.add_parser("status", help="list the nodes")
    run = commands.add_parser("exec", help="run a command in a node as root (its console, as it were)")
    run.add_argument("set")
    run.add_argument("node")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND…")
    commands.add_parser("clean", help="remove all nodes, their images and the cached engine images")
    return parser.parse_args()


def _main(arguments: argparse.Namespace) -> int:
    if arguments.command == "host-setup":
        install_packages()
    elif arguments.command == "images":
        install_packages()
        names = list(engine_images.all_recipes()) if arguments.name == ["all"] else arguments.name
        engine_images.ensure_engine_images(names or DEFAULT)
    elif arguments.command == "model-hub":
        install_packages()
        run_model_hub(MODELS if arguments.name == ["all"] else arguments.name)
    elif arguments.command == "vendor-repository":
        install_packages()
        if not ensure_vendor_repository(repositories()):
            say(f"  ok stand-in vendor repositories are served on {url()}")
    elif arguments.command == "up":
        install_packages()
        # The nodes first: whoever removes the last nodes takes registry and hub away.
        nodes.up(arguments.set, nodes.nodes_of_inventory(arguments.inventory))
        if arguments.images:
            engine_images.ensure_engine_images(engine_images.images_of_inventory(arguments.inventory))
            models = models_of_inventory(arguments.inventory)
            if models is not None:
                run_model_hub(models)
    elif arguments.command == "down":
        nodes.down(None if arguments.set == "all" else arguments.set)
    elif arguments.command == "status":
        for row in nodes.status():
            say("{set:14} {node:14} {address:16} {state}".format(**row))
        say(f"log in: ssh -i {ssh_key()} fleet@ADDRESS")
    elif arguments.command == "exec":
        done = podman("exec", f"{PREFIX}-{arguments.set}-{arguments.node}", *arguments.argv, check=False)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    elif arguments.command == "clean":
        nodes.down(None)
        engine_images.remove_engine_images()
        remove_vendor_repository()
        remove_model_hub()
        for image in podman("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split():
            if image.startswith(f"localhost/{PREFIX}/"):
                podman("rmi", "--force", image, check=False)
        say(f"left in place: {cache_dir()}/models and {cache_dir()}/ssh")
    return 0


def main() -> int:
    """Run one command; errors are one message on standard error and exit code 1."""
    arguments = _arguments()
    try:
        return _main(arguments)
    except (LocalNodesError, OSError) as error:
        print(f"local_nodes: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
