import { createHash } from "node:crypto";

/**
 * The name with the highest score for this user (rendezvous hashing, Thaler and Ravishankar 1998). The same names always
 * give the same result. When a name is added or removed, only its own users move: 1 in n.
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
