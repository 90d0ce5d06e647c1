#!/usr/bin/env python3
"""Checks the commands and links of the documentation against the program and the repository.

  documented_commands.py ROOT PROGRAM

For every command in a ```sh block, and every one that quickstart.sh prints under "What to try next": the sub-command exists,
its options are in its --help, keys of --set are in `train --help-config`, files of the repository that it names exist, and a
train command's configuration is accepted. For every relative link: its target exists.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT, PROGRAM = Path(sys.argv[1]), sys.argv[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
IN_REPOSITORY = re.compile(r"^(\./)?(examples|cluster|tests|docs|quickstart\.sh|test\.sh)\b")


def output_of(*arguments):
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return result.returncode, result.stdout + result.stderr


helps = {}


def options_of(command):
    if command not in helps:
        code, text = output_of(*command.split(), "--help")
        helps[command] = set(re.findall(r"--[a-z][a-z-]*", text)) if code == 0 else None
    return helps[command]


def configuration_keys():
    keys, section = set(), ""
    for line in output_of("train", "--help-config")[1].splitlines():
        if match := re.match(r"^([a-z]+):$", line):
            section = match.group(1)
        elif match := re.match(r"^  ([a-z_]+):", line):
            keys.add(f"{section}.{match.group(1)}")
    return keys


KEYS = configuration_keys()


def check_lockstep(words):
    """`words` begin behind `lockstep`."""
    command, arguments = words[0], words[1:]
    if command == "bench" and arguments and not arguments[0].startswith("-"):
        command, arguments = f"{command} {arguments[0]}", arguments[1:]
    if command.startswith("-"):
        return [] if output_of(command)[0] == 0 else [f"{command} is refused"]
    options = options_of(command)
    if options is None:
        return [f"there is no command {command}"]
    found = []
    for word in arguments:
        name = word.split("=")[0]
        if name.startswith("--") and name not in options:
            found.append(f"{command} has no option {name}")
    keys = [arguments[i + 1].split("=")[0] for i, word in enumerate(arguments[:-1]) if word == "--set"]
    found += [f"{key} is no configuration key" for key in keys if key not in KEYS]
    if command == "train" and arguments and arguments[0].endswith(".yaml"):
        code, text = output_of("train", str(ROOT / arguments[0]), *arguments[1:], "--print-config")
        if code != 0:
            found.append(text.strip())
    return found


def check_command(line):
    words = shlex.split(line, comments=True)
    found = [f"{word} does not exist" for word in words if IN_REPOSITORY.match(word) and not (ROOT / word).exists()]
    for i, word in enumerate(words[:-1]):
        if word in ("lockstep", "build/release/lockstep"):
            found += check_lockstep(words[i + 1 :])
            break
    return found


def commands_in(page):
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.strip()


def quickstart_commands(*arguments):
    """What quickstart.sh, started with `arguments`, prints as commands to try: its beginning, which reads the arguments and does
    nothing yet, and then the function that prints them."""
    beginning, begin_of_work, _ = (ROOT / "quickstart.sh").read_text().partition('\necho "Lockstep: ')
    if not begin_of_work:
        return []
    shell = ["bash", "-c", f"{beginning}\ntry_next", "./quickstart.sh", *arguments]
    text = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    return re.findall(r"^  ((?:build/release/lockstep|cluster/\S+|\./\S+) .*)$", text, re.MULTILINE)


def main():
    found, commands = [], 0
    for page in PAGES:
        text = page.read_text()
        name = page.relative_to(ROOT)
        for line in commands_in(text):
            commands += 1
            found += [f"{name}: {line}\n    {problem}" for problem in check_command(line)]
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not (page.parent / target).exists():
                found.append(f"{name}: the link to {target} leads nowhere")
    for arguments in [], ["--steps", "40"]:
        lines = quickstart_commands(*arguments)
        if len(lines) < 3:
            found.append(f"quickstart.sh {' '.join(arguments)}: names {len(lines)} commands to try next, expected are more")
        for line in lines:
            commands += 1
            found += [f"quickstart.sh: {line}\n    {problem}" for problem in check_command(line)]
    print("\n".join(found))
    print(f"{len(PAGES)} pages, {commands} commands, {len(found)} problems")
    return 1 if found or commands == 0 else 0


sys.exit(main())
