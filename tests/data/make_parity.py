"""Make tests/data/parity.json, from which docs/models.md is made: see tests/support/parity.py.

    python make_parity.py [NAME...] && python -P ../../docs/check.py --write

NAME: a fixture; without any, all are measured. Needs the native kernels. CONIFER_FIXTURES does not
matter: only what is committed is recorded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.parity import write_record

if __name__ == "__main__":
    write_record(sys.argv[1:])
