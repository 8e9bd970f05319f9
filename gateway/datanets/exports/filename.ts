/** Names of files for people, made of names that anybody may have chosen: nothing in them can end a header, leave a folder or turn the text around. */

const NAME_CHARACTERS_MAX = 80;

/** @returns a value for `content-disposition` (RFC 6266): an ASCII name, and the full one (RFC 8187) where it differs. */
export function attachment(name: string, suffix: string): string {
  const ascii = plain(name.normalize('NFKD').replace(/[^\x20-\x7e]/g, ''), /[^A-Za-z0-9._-]+/g);
  const full = plain(name.normalize('NFC'), /[\p{C}\p{Z}/\\:*?"<>|%;]+/gu);
  const value = `attachment; filename="${ascii}${suffix}"`;
  return full === ascii ? value : `${value}; filename*=UTF-8''${percentEncoded(`${full}${suffix}`)}`;
}

function plain(name: string, unwanted: RegExp): string {
  // Without a dot or dash at either end: no hidden files, no parent folders, no options.
  const kept = [...name.replace(unwanted, '-')].slice(0, NAME_CHARACTERS_MAX).join('');
  return kept.replace(/^[-.\s]+|[-.\s]+$/gu, '') || 'datanet';
}

function percentEncoded(text: string): string {
  return encodeURIComponent(text).replace(/['()*!]/g, (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`);
}
