/** `npx drizzle-kit generate --config gateway/db/drizzle.config.ts` writes the next migration. */
import { defineConfig } from 'drizzle-kit';

export default defineConfig({ dialect: 'sqlite', schema: './gateway/db/schema.ts', out: './migrations/gateway' });
