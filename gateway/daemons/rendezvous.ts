/**
 * Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights by the logarithmic method of Schindelhauer & Schomaker 2005):
 * every gateway ranks the daemons for a key alike without talking, and a daemon that leaves moves only its own keys.
 */
import { hash53 } from '../hash53.ts';

/** In (0, 1). Speed and spread matter here, secrecy does not. */
export function unitHash(text: string): number {
  return (hash53(text) + 0.5) / 2 ** 53;
}

/** Best first. Nodes of weight 0 are left out. */
export function rank<T>(key: string, nodes: readonly { id: string; weight: number; node: T }[]): T[] {
  return nodes
    .filter(({ weight }) => weight > 0)
    .map(({ id, weight, node }) => ({ node, score: -weight / Math.log(unitHash(`${id}\n${key}`)) }))
    .sort((x, y) => y.score - x.score)
    .map(({ node }) => node);
}
