"""The descriptor pool of our generated code.

Generated code usually registers itself in the process-wide default pool, where a second copy of
``codegen/v1/*.proto`` (a user's own) would clash with it. Ours loads here instead, so that both
can be imported in one process, in either order.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
"""Holds codegen/v1/*.proto and nothing else."""
