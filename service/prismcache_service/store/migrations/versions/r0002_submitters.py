"""The clients that want a job, as a JSON list."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """The clients of existing jobs are unknown: any client of their owner may cancel them."""
    op.add_column("jobs", sa.Column("submitters", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Forget them."""
    with op.batch_alter_table("jobs") as table:
        table.drop_column("submitters")
