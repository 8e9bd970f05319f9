/**
 * Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights by the logarithmic method of Schindelhauer & Schomaker 2005):
 * every gateway ranks the daemons for a key alike without talking, and a daemon that leaves moves only its own keys.
 */

/** 53-bit cyrb hash, mapped into (0, 1). Speed and spread matter here, secrecy does not. */
export function unitHash(text: string): number {
  let a = 0xdeadbeef;
  let b = 0x41c6ce57;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    a = Math.imul(a ^ code, 2654435761);
    b = Math.imul(b ^ code, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return (4294967296 * (2097151 & b) + (a >>> 0) + 0.5) / 9007199254740992;
}

/** Best first. Nodes of weight 0 are left out. */
export function rank<T>(key: string, nodes: readonly { id: string; weight: number; node: T }[]): T[] {
  return nodes
    .filter(({ weight }) => weight > 0)
    .map(({ id, weight, node }) => ({ node, score: -weight / Math.log(unitHash(`${id}\n${key}`)) }))
    .sort((x, y) => y.score - x.score)
    .map(({ node }) => node);
}
