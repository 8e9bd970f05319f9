/** Characters that should not be there: traces of a wrong encoding, and what is hidden from readers. */
import type { Findings } from './findings.ts';
import type { Part } from './text.ts';

/** What Windows-1252 shows for the bytes 0x80 to 0xBF, the second bytes of UTF-8. */
const SECOND = '\\u0080-\\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ';
/**
 * UTF-8 read as Windows-1252 or Latin-1: Ã© for é, â€™ for ’, ï»¿ for a byte order mark, Ð¿Ñ€ for Cyrillic. A capital Ã or Â is followed by what no
 * word has after it.
 */
const MOJIBAKE = new RegExp(
  `[ÃÂ][\\u0080-\\u009f\\u00a1-\\u00a9\\u00ab-\\u00b9\\u00bc-\\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]|Ã(?:\\u00a0|ª|º)|â[€‚„‡ˆ‰][${SECOND}]|ï»¿|ï¿½|(?:[ÐÑ][${SECOND}]){3}|ð[Ÿ\\u009f][${SECOND}]{2}|(?:[ãäåæçèé][${SECOND}]{2}){2}`,
);
/** Only these can begin it, and they are rare. */
const HIGH = /[^\p{ASCII}]/u;
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for.
const CONTROL = /[\x00-\x08\x0b\x0e-\x1f\x7f]/;
const CONTROL_HIGH = /[\u0080-\u0084\u0086-\u009f\ufff9-\ufffb]|\p{Noncharacter_Code_Point}|\p{Co}/u;
/** Overrides of direction, and tag characters (Unicode 23.9) that no flag has: text that models read and people do not see. */
const HIDDEN =
  /[\u202d\u202e]|(?<!\u{1f3f4}[\u{e0020}-\u{e007f}]{0,8})[\u{e0020}-\u{e007f}]|[\u200b\u2060-\u2064\u00ad]{3}/u;
/** Delimiters of chat templates: inside a message they end it early. */
const CONTROL_TOKENS =
  /<\|(?:im_start|im_end|endoftext|begin_of_text|end_of_text|eot_id|start_header_id|end_header_id|system|user|assistant|end)\|>|<(?:start_of_turn|end_of_turn)>|\[\/?INST\]|<<\/?SYS>>/;

export function checkCharacters(part: Part, findings: Findings): void {
  const { text } = part;
  const control = CONTROL.exec(text);
  if (control !== null)
    findings.at(
      'control_characters',
      part,
      control.index,
      `Control characters (U+${hex(control[0])}), as of a wrong encoding or a terminal`,
    );
  const tokens = text.includes('<') || text.includes('[') ? CONTROL_TOKENS.exec(text) : null;
  if (tokens !== null)
    findings.at(
      'control_tokens',
      part,
      tokens.index,
      'Delimiters of a chat template inside the text, which would end a message early',
    );
  if (!HIGH.test(text)) return;
  const replaced = text.indexOf('\ufffd');
  if (replaced !== -1)
    findings.at('damaged_encoding', part, replaced, 'Characters that were lost in an encoding (U+FFFD)');
  const mojibake = MOJIBAKE.exec(text);
  if (mojibake !== null)
    findings.at(
      'damaged_encoding',
      part,
      mojibake.index,
      `Text that was read in the wrong encoding (${mojibake[0].slice(0, 4)})`,
    );
  const half = text.search(/\p{Cs}/u);
  if (half !== -1) findings.at('damaged_encoding', part, half, 'Half of a character (an unpaired surrogate)');
  const high = CONTROL_HIGH.exec(text);
  if (high !== null)
    findings.at(
      'control_characters',
      part,
      high.index,
      `Characters without a meaning (U+${hex(high[0])}), as of a wrong encoding`,
    );
  const hidden = HIDDEN.exec(text);
  if (hidden !== null)
    findings.at('hidden_text', part, hidden.index, `Characters that readers do not see (U+${hex(hidden[0])})`);
}

function hex(character: string): string {
  return (character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, '0');
}
