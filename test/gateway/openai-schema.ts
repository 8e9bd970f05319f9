/** OpenAI's own API description as a judge of our answers: OpenAPI 3.1 with some 3.0 habits, turned into JSON Schema for ajv. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { parse } from 'yaml';

const path = fileURLToPath(new URL('../../../shared/reference/openai-openapi.yaml', import.meta.url));
export const hasOpenAiSchema = existsSync(path);

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** `nullable: true` is 3.0's; beside 3.1's own forms it means "or null". */
function modern(value: Json): Json {
  if (Array.isArray(value)) return value.map(modern);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).filter(
    ([name]) => name !== 'nullable' && name !== 'discriminator' && name !== 'example' && !name.startsWith('x-'),
  );
  const schema = Object.fromEntries(entries.map(([name, child]) => [name, modern(child)]));
  // 3.0's flag beside the bound; 3.1's is the bound itself.
  if (schema.exclusiveMinimum === true && typeof schema.minimum === 'number') {
    schema.exclusiveMinimum = schema.minimum;
    delete schema.minimum;
  }
  return value.nullable === true ? { anyOf: [schema, { type: 'null' }] } : schema;
}

let ajv: Ajv2020 | undefined;

function judge(): Ajv2020 {
  if (ajv === undefined) {
    const text = readFileSync(path, 'utf8');
    // Only the schemas are needed, and most of the file is not schemas.
    const components = parse(text.slice(text.indexOf('\ncomponents:') + 1)) as { components: { schemas: Json } };
    ajv = new Ajv2020({ strict: false, validateFormats: false, allErrors: true });
    ajv.addSchema({
      $id: 'https://openai.test/spec',
      components: { schemas: modern(components.components.schemas) },
    } as object);
  }
  return ajv;
}

/** @throws Error listing where the value departs from the named schema. */
export function assertOpenAi(schema: string, value: unknown): void {
  const validate = judge().getSchema(`https://openai.test/spec#/components/schemas/${schema}`);
  if (validate === undefined) throw new Error(`the description has no schema ${schema}`);
  if (validate(value)) return;
  const errors = (validate.errors ?? []).slice(0, 5).map((error) => `${error.instancePath} ${error.message}`);
  throw new Error(`not a ${schema}: ${errors.join('; ')}\n${JSON.stringify(value).slice(0, 2000)}`);
}
