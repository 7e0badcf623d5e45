"""What Alembic runs: on the connection that `migrate` opened, within its transaction."""

from alembic import context

from whatfits.service.storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
