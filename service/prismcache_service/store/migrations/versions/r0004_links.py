"""Capability links."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision: str | None = "0003"

_ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "links",
        sa.Column("id", _ID, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("crop", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_links"),
    )


def downgrade() -> None:
    """Drop the table: links that are out there end."""
    op.drop_table("links")
