/** Licences are SPDX expressions (SPDX 2.3, annex D): identifiers of the SPDX licence list, `LicenseRef-…`, AND, OR, WITH. */
import parse from 'spdx-expression-parse';
import { badRequest } from '../errors.ts';
import { limits } from '../limits.ts';

const CHARACTERS = /^[A-Za-z0-9.+:()\- ]+$/;
/** The parser goes one level down for each; a real expression has few. */
const PARENTHESES_MAX = 16;

export function isSpdx(text: string): boolean {
  if (text.length > limits.datanetLicenceCharactersMax || !CHARACTERS.test(text)) return false;
  if (text.split('(').length - 1 > PARENTHESES_MAX) return false;
  try {
    parse(text);
    return true;
  } catch {
    return false;
  }
}

/** With single spaces. @throws ApiError 400 */
export function spdxExpression(text: string, param = 'licence'): string {
  const expression = text.trim().replaceAll(/ +/g, ' ');
  if (isSpdx(expression)) return expression;
  throw badRequest(
    param,
    'invalid_licence',
    `Invalid '${param}': it must be an SPDX licence expression such as CC-BY-4.0, Apache-2.0 OR MIT, or LicenseRef-Ours (with the text in \`terms\`). Identifiers are listed at spdx.org/licenses.`,
  );
}
