import type { EventsBreak } from "../../events/verify.js";
import type { FleetHosts } from "../fleet-hosts.js";

/** The first place where a host's audit log is not as the host wrote it. */
export interface BrokenAt extends EventsBreak {
  /** Null in a fleet on one host. */
  host: string | null;
}

export interface EventsVerified {
  /** Whether the logs of all live hosts were verified, and none of them is broken. */
  ok: boolean;
  /** How many events the verified logs have. */
  events: number;
  /** The first break of the first broken log, or null. */
  brokenAt: BrokenAt | null;
  /** The first break of each broken log. */
  breaks: BrokenAt[];
  /** The hosts that did not answer. Their logs were not verified. */
  missing: string[];
}

/** Verifies the audit logs of all hosts. */
export async function verifyEverywhere(hosts: FleetHosts): Promise<EventsVerified> {
  const { answers, missing } = await hosts.everywhere(async (host) => await host.verifyEvents({}));
  const breaks = answers.flatMap(({ host, answer: { brokenAt } }) =>
    brokenAt === null ? [] : [{ host: host.name, ...brokenAt }],
  );
  const silent = missing.filter(({ isGone }) => !isGone);
  return {
    ok: breaks.length === 0 && silent.length === 0,
    events: answers.reduce((sum, { answer }) => sum + answer.events, 0),
    brokenAt: breaks[0] ?? null,
    breaks,
    missing: missing.map(({ host }) => host),
  };
}
