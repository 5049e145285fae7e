import { countOf } from "../config/values/text.js";
import { admitting, type HostRecord } from "../model/host.js";
import type { UserPlacement } from "../model/placement.js";
import type { SessionRecord } from "../model/session.js";
import { rendezvousChoice } from "../pool/placement.js";

/**
 * The move of a user and the user's sessions to another host. If the user is already placed there, the move covers only
 * the sessions that an earlier move left behind, because they were in use or because the process that moved the user
 * was killed.
 */
export interface Move {
  user: string;
  from: string;
  to: string;
  /** How many of the user's sessions are recorded on `from`. */
  sessions: number;
}

export interface RebalancePlan {
  /** For each host: how many users it has now (`users`), and how many it would have after the moves (`planned`). */
  hosts: { name: string; users: number; planned: number; takesUsers: boolean }[];
  moves: Move[];
  /** Users who should be on another host, and the reason why they stay. */
  stays: { user: string; host: string; reason: string }[];
}

export interface PlanInput {
  hosts: readonly HostRecord[];
  placements: readonly UserPlacement[];
  sessions: readonly SessionRecord[];
  /** Whether hosts share storage, so that sessions can move with their user. */
  isShared: boolean;
}

/**
 * Plans which users move. A user moves only if another host has the highest score for the user now. So a host that
 * joins n - 1 other hosts gets one in n users from each of them, and no other user moves.
 */
export function planRebalance({ hosts, placements, sessions, isShared }: PlanInput): RebalancePlan {
  const targets = admitting(hosts).map(({ name }) => name);
  const there = new Set(hosts.flatMap(({ name, gone }) => (gone ? [] : name)));
  const counted = countSessions(sessions);
  const plan: RebalancePlan = { hosts: [], moves: [], stays: [] };
  const [before, after] = [new Map<string, number>(), new Map<string, number>()];
  for (const { user, placement } of placements) {
    const from = placement.host;
    if (from === undefined) continue;
    const to = targets.length === 0 ? from : rendezvousChoice(user, targets);
    const move = { user, from, to, sessions: counted.get(user)?.get(from) ?? 0 };
    count(before, from);
    if (move.to === from) {
      count(after, from);
      if (isShared && targets.includes(from)) plan.moves.push(...leftBehind(user, from, counted.get(user), there));
    } else if (move.sessions > 0 && !isShared && there.has(from)) {
      plan.stays.push({
        user,
        host: from,
        reason: `the disk of ${from} has ${countOf(move.sessions, "session")} of this user`,
      });
      count(after, from);
    } else {
      plan.moves.push(move);
      count(after, move.to);
    }
  }
  const names = [...new Set([...hosts.map(({ name }) => name), ...before.keys()])].sort();
  plan.hosts = names.map((name) => ({
    name,
    users: before.get(name) ?? 0,
    planned: after.get(name) ?? 0,
    takesUsers: targets.includes(name),
  }));
  plan.moves.sort((a, b) => (a.user < b.user ? -1 : 1));
  return plan;
}

/**
 * Returns the moves for the user's sessions that are still on other live hosts. Sessions of hosts that are gone move
 * when somebody uses them.
 */
function leftBehind(
  user: string,
  to: string,
  counted: ReadonlyMap<string, number> | undefined,
  there: ReadonlySet<string>,
): Move[] {
  return [...(counted ?? [])].flatMap(([from, sessions]) =>
    from !== to && there.has(from) ? [{ user, from, to, sessions }] : [],
  );
}

function countSessions(sessions: readonly SessionRecord[]): Map<string, Map<string, number>> {
  const counted = new Map<string, Map<string, number>>();
  for (const { owner, host, released } of sessions) {
    if (host === undefined || released === true) continue;
    const ofOwner = counted.get(owner) ?? new Map<string, number>();
    counted.set(owner, ofOwner);
    count(ofOwner, host);
  }
  return counted;
}

function count(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}
