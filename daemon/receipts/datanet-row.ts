/** The leaf of a row of a Datanet: what it is (by hash), whose, under which licence, since when. Made by gateways, checked by anybody. */
import { z } from 'zod';

export const DATANET_ROW = 'modelfactory.datanet-row/1';

/** Nothing besides: an unknown field would be signed and never shown. */
export const datanetRowRecord = z.strictObject({
  type: z.literal(DATANET_ROW),
  datanet: z.string().min(1),
  /** SHA-256 of the row's canonical JSON. */
  content: z.string().regex(/^[0-9a-f]{64}$/),
  contributor: z.string().min(1),
  contribution: z.string().min(1),
  licence: z.string().min(1),
  time: z.iso.datetime(),
  generated_by: z.string().nullable(),
});
export type DatanetRowRecord = z.output<typeof datanetRowRecord>;

export const datanetRowLeaf = z.strictObject({ record: datanetRowRecord, signature: z.string() });
