"""Which device of AI Hub a matrix entry means, and what is known of its chip."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pytest_devicelab.aihub.account import Account
from pytest_devicelab.aihub.messages import HubDevice
from pytest_devicelab.aihub.outcome import HubRefused
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import DeviceIdentity
from pytest_devicelab.matrix.soc import Soc, soc_by_qnn_id
from pytest_devicelab.matrix.specs import DeviceSpec

_FRAMEWORK = "framework:qnn"


def choose(spec: DeviceSpec, listed: Iterable[HubDevice]) -> HubDevice:
    """Return the device an entry means: of several, the first name in the alphabet, and of that the newest os.

    Raises:
        InfrastructureError: AI Hub has none.
    """
    wanted = hub_attributes(spec)
    fitting = [
        each
        for each in listed
        if (not spec.name or each.name == spec.name) and set(wanted) <= set(each.attributes)
    ]
    if not fitting:
        said = [f"name {spec.name!r}"] * bool(spec.name) + [f"os {spec.hub_os!r}"] * bool(spec.hub_os)
        raise HubRefused(
            f"device {spec.id}: AI Hub has no such device now",
            why=f"none has {', '.join([*said, *wanted])}",
            fix="`devicelab suggest --aihub=all` lists those there are",
        )
    first = min(each.name for each in fitting)
    return max((each for each in fitting if each.name == first), key=lambda each: _version(each.os))


def hub_attributes(spec: DeviceSpec) -> tuple[str, ...]:
    """Return the attributes a matrix entry asks for."""
    chip = (f"chipset:{spec.chipset}",) if spec.chipset else ()
    return (*chip, *spec.attributes)


def chip_of(spec: DeviceSpec, device: HubDevice) -> Soc | None:
    """Return the chip of a device: what AI Hub's attributes say, held against the matrix.

    Raises:
        InfrastructureError: they contradict each other.
    """
    told = _told(device)
    hexagon = device.attribute("hexagon").upper()
    if spec.soc is None:
        return told
    theirs = told.hexagon if told else hexagon
    if (theirs and theirs != spec.soc.hexagon) or (told is not None and told.qnn_id != spec.soc.qnn_id):
        raise InfrastructureError(
            f"device {spec.id} is not what the matrix says",
            why=f"the matrix says {spec.soc.name} ({spec.soc.hexagon}); "
            f"AI Hub's {device.name} has {told.name if told else 'a chip'} ({theirs})",
            fix=f"correct soc: of device {spec.id} ({spec.source}), or leave it out",
        )
    return spec.soc


def identity(spec: DeviceSpec, device: HubDevice | None, soc: Soc | None, account: Account) -> DeviceIdentity:
    """Return who the device is, and whether it passes for silicon: only Qualcomm's own service does."""
    soc = soc or spec.soc
    why = account.simulated_because
    if device is not None and device.attribute("simulated") == "true":
        why = why or "AI Hub says so of it"
    properties = {"aihub.api_url": account.api_url}
    if why:
        properties["aihub.simulated_because"] = why
    if device is not None:
        properties |= {
            "aihub.name": device.name,
            "aihub.os": device.os,
            "aihub.attributes": " ".join(sorted(device.attributes)),
        }
    return DeviceIdentity(
        id=spec.id,
        kind="aihub",
        soc=soc.name if soc else None,
        hexagon=(soc.hexagon if soc else None)
        or (device.attribute("hexagon").upper() or None if device else None),
        simulated=bool(why),
        engine=(device.attribute("engine") if device else "") or "unknown" if why else None,
        properties={name: account.hide(value) for name, value in properties.items()},
    )


def device_set(name: str, listed: Iterable[HubDevice]) -> tuple[HubDevice, ...]:
    """Return the devices of a set that can run QNN models, each with its newest os, by name.

    The set `all` is every one; `canary` is one device for each version of the Hexagon.
    """
    newest: dict[str, HubDevice] = {}
    for each in listed:
        known = newest.get(each.name)
        if _FRAMEWORK in each.attributes and (known is None or _version(each.os) > _version(known.os)):
            newest[each.name] = each
    every = tuple(newest[key] for key in sorted(newest))
    if name == "all":
        return every
    canaries: dict[str, HubDevice] = {}
    for each in every:
        if hexagon := each.attribute("hexagon"):
            canaries.setdefault(hexagon, each)
    return tuple(canaries[key] for key in sorted(canaries))


def _told(device: HubDevice) -> Soc | None:
    """Return the chip whose QNN id AI Hub gives; of several with that id, the one its Hexagon fits."""
    number = device.attribute("soc-model")
    if not re.fullmatch(r"[0-9]{1,6}", number):
        return None
    hexagon = device.attribute("hexagon").upper()
    chips = [soc for soc in soc_by_qnn_id(int(number)) if not hexagon or soc.hexagon == hexagon]
    return chips[0] if chips else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,6}", text))
