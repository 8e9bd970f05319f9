/** `npx drizzle-kit generate --config daemon/db/drizzle.config.ts --name WHAT` writes the next migration. */
import { defineConfig } from 'drizzle-kit';

export default defineConfig({
  dialect: 'sqlite',
  schema: './daemon/db/schema.ts',
  out: './migrations/daemon',
});
