import { existsSync } from "node:fs";
import type { EventFilter } from "../../accounts/audit/query.js";
import { NEVER } from "../../base/clock.js";
import { isFleetError, option } from "../../base/errors.js";
import type { FleetEvent } from "../../base/event.js";
import { parseMoment } from "../../base/values/measures.js";
import {
  type EventPositions,
  type EventsFilter,
  type EventsVerified,
  followEvents,
  gatherEvents,
  verifyEverywhere,
} from "../../hosts/all-events.js";
import * as arg from "../../operations/fields.js";
import { Group } from "./group.js";

export interface FollowFilter extends EventsFilter {
  after?: EventPositions | undefined;
  signal?: AbortSignal | undefined;
}

/** The audit log of all hosts: who did what, and why. */
export class EventGroup extends Group {
  /**
   * Lists the events of all hosts, sorted by time. A warning (`fleet.takeWarnings`) names each host that does not
   * answer.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` when the filter's `type` is not a kind of event, or its `since` is not a
   * time.
   */
  async list(filter: EventsFilter = {}): Promise<FleetEvent[]> {
    return await gatherEvents(this.parts.hosts, read(filter));
  }

  /**
   * Yields the events that {@link list} returns, and then each new event of any host, until the signal aborts or the
   * caller stops reading. For each host that `after` names, yields only the events after the given number.
   */
  follow(filter: FollowFilter = {}): AsyncGenerator<FleetEvent, void, undefined> {
    const { hosts, warn } = this.parts;
    const { signal = NEVER, after, ...rest } = filter;
    return followEvents(hosts, read(rest), { signal, warn, after });
  }

  /** Verifies that no line in the log of any host was changed, removed or moved. */
  async verify(): Promise<EventsVerified> {
    return await verifyEverywhere(this.parts.hosts);
  }

  /**
   * Records in the log that a command ran. Records nothing if there is no state folder, because without a state folder,
   * the command found no fleet and did nothing.
   *
   * @param name the name of the command, without its arguments
   * @param options.error the error with which the command failed
   */
  async ran(name: string, { user, error }: { user?: string | undefined; error?: unknown } = {}): Promise<void> {
    if (!existsSync(this.parts.stateRoot)) return;
    const failed = error === undefined ? {} : { outcome: "failed", reason: isFleetError(error) ? error.code : null };
    this.parts.events.note({ type: "command.run", user: user ?? null, detail: name, ...failed });
  }

  static {
    Group.guard(EventGroup.prototype, {
      list: ["options"],
      follow: [arg.options({ after: arg.counts })],
      verify: [],
      ran: ["name", "options"],
    });
  }
}

function read({ user, type, since }: EventsFilter): EventFilter {
  return {
    user,
    types: type === undefined ? undefined : [type],
    sinceMs: since === undefined ? undefined : parseMoment(since, option("since")),
  };
}
