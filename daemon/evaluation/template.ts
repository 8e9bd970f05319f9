/** The templates of OpenAI's graders: `{{ item.reference }}`, `{{ sample.output_json.names[0] }}`. Nothing is computed in them. */

const PLACE = /\{\{([^{}]*)\}\}/g;
const PATH = /^(item|sample)((?:\.[A-Za-z_$][\w$-]*|\[\d{1,6}\])*)$/;

export interface TemplateValues {
  item: Record<string, unknown>;
  sample: Record<string, unknown>;
}

/** Why a template could never be filled in, or null. */
export function templateProblem(template: string): string | null {
  for (const [, inner = ''] of template.matchAll(PLACE)) {
    if (!PATH.test(inner.trim()))
      return `{{${inner.slice(0, 64)}}} is no variable: use item.… or sample.…, with fields by name and [number]`;
  }
  const rest = template.replace(PLACE, '');
  return /\{\{|\}\}/.test(rest) ? 'there is a {{ without its }}, or the other way round' : null;
}

/** @throws VariableError on a variable that the values lack. Texts go in as they are, everything else as JSON. */
export function fillTemplate(template: string, values: TemplateValues): string {
  return template.replace(PLACE, (_, inner: string) => textOf(inner.trim(), values));
}

export class VariableError extends Error {}

function textOf(path: string, values: TemplateValues): string {
  const match = PATH.exec(path);
  if (match === null) throw new VariableError(`${path.slice(0, 64)} is no variable`);
  let value: unknown = values[match[1] as 'item' | 'sample'];
  for (const [, name, index] of (match[2] as string).matchAll(/\.([\w$-]+)|\[(\d+)\]/g)) {
    const key = name ?? (index as string);
    const holds = typeof value === 'object' && value !== null && Object.hasOwn(value, key);
    if (!holds) throw new VariableError(`there is no ${path.slice(0, 64)}`);
    value = (value as Record<string, unknown>)[key];
  }
  if (value === undefined) throw new VariableError(`there is no ${path.slice(0, 64)}`);
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** What an answer offers to templates. `output_json` is there only if the whole answer is JSON. */
export function sampleValues(text: string, tools: unknown[] = []): Record<string, unknown> {
  const sample: Record<string, unknown> = { output_text: text, output_tools: tools };
  try {
    sample.output_json = JSON.parse(text);
  } catch {
    // Then a template that asks for it fails.
  }
  return sample;
}
