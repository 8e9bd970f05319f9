/** What looks like a credential of ours, wherever a client may have put it: keys, links, session cookies. */
const CREDENTIALS = /mfi?-[A-Za-z0-9_-]{16,}|mf_session=[A-Za-z0-9_-]{8,}|Bearer\s+[^\s"\\]{8,}/gi;

export function strikeCredentials(text: string): string {
  return text.replace(CREDENTIALS, '[redacted]');
}
