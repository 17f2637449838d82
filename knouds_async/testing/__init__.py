"""The Knouds service in memory, for tests and trials without a key: an emulator, faults, and virtual time."""

from knouds_async.testing import faults
from knouds_async.testing._service.catalog import ApiKey, EmulatedWorkflow, Model
from knouds_async.testing._service.endpoints import openapi
from knouds_async.testing._service.runs import Run
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.messages import Broken, Fault, Later, Request, Response, Wire
from knouds_async.testing.server import serve
from knouds_async.testing.settings import Deliveries, Delivery, Lognormal
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.testing.virtual_time import VirtualTimeLoop, virtual_backend

__all__ = [
    "ApiKey",
    "Broken",
    "Deliveries",
    "Delivery",
    "EmulatedWorkflow",
    "Emulator",
    "EmulatorTransport",
    "Fault",
    "Later",
    "Lognormal",
    "Model",
    "Request",
    "Response",
    "Run",
    "VirtualTimeLoop",
    "Wire",
    "Workflow",
    "faults",
    "openapi",
    "serve",
    "virtual_backend",
]

Workflow = EmulatedWorkflow
