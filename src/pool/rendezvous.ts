import { createHash } from "node:crypto";

/**
 * The one of `names` with the highest score for this user (rendezvous hashing, Thaler and Ravishankar 1998): always the same
 * one, and when names come or go only the users of those move, 1 in n.
 */
export function rendezvous(user: string, names: readonly string[]): string {
  let best = "";
  let highest = "";
  for (const name of names) {
    const score = createHash("sha256").update(`${user}\0${name}`).digest("hex");
    if (best === "" || score > highest) {
      best = name;
      highest = score;
    }
  }
  return best;
}
