/** Pages of lists, in OpenAI's shape. */
import { z } from '@hono/zod-openapi';
import { limits } from '../limits.ts';

/** What a list takes. */
export const pageQuery = {
  limit: z.coerce.number().int().min(1).max(limits.pageMax).default(limits.pageDefault),
  after: z.string().max(128).optional(),
};

/** As the OpenAPI description shows a page of a list. */
export function pageView(item: z.ZodType) {
  return z.object({
    object: z.literal('list'),
    data: z.array(item),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  });
}

/** One page, in the order of its rows. */
export function pageOf<T extends { id: string }>(data: T[], hasMore: boolean) {
  return {
    object: 'list' as const,
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: hasMore,
  };
}
