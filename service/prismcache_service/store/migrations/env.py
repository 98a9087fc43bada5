"""What alembic runs: the migrations, on the connection that `migrations.upgrade` was given."""

from alembic import context

from prismcache_service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
context.run_migrations()
