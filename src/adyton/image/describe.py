"""What `adyton inspect` says about an image: from its manifest and signatures, nothing of it is run."""

from __future__ import annotations

from typing import Any

import msgspec

from adyton.image.oci import DEPENDENCY_LAYER, Image


def describe(image: Image) -> dict[str, Any]:
    """The image as `inspect --json` shows it."""
    manifest = image.manifest
    return {
        "name": manifest.name,
        "entry": manifest.entry,
        "entries": [
            {
                "name": entry.name,
                "parameters": [{"name": parameter.name, "type": parameter.type} for parameter in entry.parameters],
                "returns": entry.returns,
                "stream": entry.stream,
            }
            for entry in manifest.entries
        ],
        "runtime": manifest.runtime,
        "python": manifest.python,
        "platforms": manifest.platforms,
        "measurement": image.measurement,
        "signatures": [{"signer": each.signer, "debug": each.debug, "valid": each.valid} for each in image.signatures],
        "product_id": manifest.product_id,
        "security_version": manifest.security_version,
        "host_calls": list(manifest.host_calls),
        "limits": {name: value for name, value in msgspec.structs.asdict(manifest.limits).items() if value is not None},
        "programs": list(manifest.programs),
        "time": manifest.time,
        **({"seal": manifest.seals_to} if manifest.seal else {}),
        **({"seal_memory": manifest.seal_memory} if manifest.demands_memory else {}),
        **({"broker": msgspec.to_builtins(broker)} if (broker := manifest.names_broker) else {}),
        "layers": [
            {"media_type": layer.media_type, "digest": layer.digest, "size": layer.size}
            for layer in image.layer_descriptors
        ],
        "size": image.size,
    }


def describe_text(image: Image) -> str:
    """The same for people."""
    manifest = image.manifest
    lines = [
        f"{manifest.name}  {image.measurement}",
        f"  entry             {manifest.entry}",
        *(f"    {entry}{'  (stream)' if entry.stream else ''}" for entry in manifest.entries),
        f"  runtime           {manifest.runtime} ({manifest.abi}), Python {manifest.python}, {', '.join(manifest.platforms)}",
        f"  product           {manifest.product_id}, security version {manifest.security_version}",
        f"  host calls        {', '.join(manifest.host_calls) or 'none'}",
    ]
    limits = msgspec.structs.asdict(manifest.limits)
    given = ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
    lines += [f"  limits            {given}"] if given else []
    lines.append(f"  programs          {', '.join(manifest.programs) or 'none'}")
    lines.append(f"  time              the {manifest.time}'s")
    if manifest.seal or manifest.demands_memory:
        demands = ", refused where nobody remembers them" if manifest.demands_memory else ""
        lines.append(f"  sealed files      of its {manifest.seals_to}{demands}")
    lines += [
        f"  {'dependencies' if layer.media_type == DEPENDENCY_LAYER else 'application':<16}  {layer.digest}  {layer.size} bytes"
        for layer in image.layer_descriptors
    ]
    for each in image.signatures:
        kind = "debug, by everybody's key" if each.debug else "release"
        lines.append(f"  signed by         {each.signer}  ({kind}{'' if each.valid else '; DOES NOT HOLD'})")
    if not image.signatures:
        lines.append("  signed by         nobody")
    lines.append(f"  size              {image.size} bytes")
    return "\n".join(lines)


def policy_text(image: Image) -> str:
    """A policy file that accepts this image and no other."""
    manifest = image.manifest
    holds = [each for each in image.signatures if each.valid]
    released = [each.signer for each in holds if not each.debug]
    lines = [
        f"# {manifest.name}, security version {manifest.security_version}",
        "[expect]",
        f'measurement = ["{image.measurement}"]',
    ]
    if released:
        lines += [
            "# In place of the measurement, so that later versions by the same signer are accepted too:",
            f"# signer = {msgspec.json.encode(released).decode()}",
            f"# product_id = {manifest.product_id}",
            f"# min_version = {manifest.security_version}",
        ]
    else:
        lines.append("debug = true  # no release signature: whoever runs it may look into it (adyton sign --key)")
    lines += [
        "# Which hardware, and what it must have measured of the runtime (adyton attest, adyton verify -v):",
        '# platforms = ["tdx", "sev-snp"]',
        '# runtime = ["sha256:…"]',
    ]
    return "\n".join(lines)
