import { FleetError, quote, type Suggestion } from "../../base/errors.js";
import { isSessionId } from "../../base/ids.js";
import { nearestOf, readUser } from "../../base/values/names.js";
import { onlyServer } from "../../hosts/fleet-hosts.js";
import {
  type Description,
  describeRecorded,
  describeServer,
  describeUnrecorded,
  describeUser,
  type SessionDescription,
  type UserDescription,
} from "../../hosts/overview.js";
import { meantSessions, onlyMeant } from "../../hosts/sessions/delete.js";
import { lastExpiry } from "../../hosts/sessions/remote-sessions.js";
import { listTokens } from "../../identity/tokens.js";
import { referenceOf } from "../../servers/server.js";
import { SessionExpired, warnOfUnreadable } from "../../sessions/problems.js";
import { Group } from "./group.js";

type Kind = Description["kind"];

/** Detailed descriptions of single servers, sessions and users, for people who operate the fleet. */
export class DescriptionGroup extends Group {
  /**
   * Describes one server, session or user of any host. If several of them have the same id, `server/ID`, `session/ID`
   * or `user/ID` selects one.
   *
   * @param name an id; for a server or a session also a unique prefix of its id; for a server also `ID@HOST`
   * @throws FleetError `FLEET_NAME_NOT_FOUND` when nothing has this id; `FLEET_SESSION_NOT_FOUND` if `name` begins
   * with `session/`; `FLEET_USAGE_INVALID` when several kinds have this id.
   */
  async get(name: string): Promise<Description> {
    const [, kind, id = name] = /^(server|session|user)\/(.*)$/s.exec(name) ?? [];
    const described = await (kind === undefined ? this.#any(name) : this.#one(kind as Kind, id));
    if (described !== null) return described;
    throw await this.#notFound(kind as Kind | undefined, id);
  }

  async #one(kind: Kind, id: string): Promise<Description | null> {
    if (kind === "session") return (await this.#recorded(id)) ?? (await this.#session(id));
    if (kind === "user") return await this.#user(id);
    const matching = await this.parts.hosts.matching(id);
    return matching.length === 0 ? null : await describeServer(this.parts, onlyServer(matching, id));
  }

  async #any(name: string): Promise<Description | null> {
    const { hosts } = this.parts;
    const [matching, ...others] = await Promise.all([hosts.matching(name), this.#recorded(name), this.#user(name)]);
    const isWhole = matching.some(({ server: { id }, hostName }) => [id, referenceOf({ id, hostName })].includes(name));
    const found = others.filter((description) => description !== null);
    const kinds = [...found.map(({ kind }) => kind), ...(isWhole ? ["server"] : [])];
    if (kinds.length > 1) throw ambiguous(name, kinds);
    const server = async () => await describeServer(this.parts, onlyServer(matching, name));
    if (isWhole) return await server();
    // Look for the beginning of an id, and for sessions without a record, only if nothing has exactly this id.
    return found[0] ?? (matching.length > 0 ? await server() : await this.#session(name));
  }

  async #recorded(id: string): Promise<SessionDescription | null> {
    return isSessionId(id) ? await describeRecorded(this.parts, id) : null;
  }

  /** Describes the only session whose id begins with the text, even if it has no record. Null if no session matches. */
  async #session(text: string): Promise<SessionDescription | null> {
    const [ids = []] = await meantSessions(this.parts, [text], undefined);
    const id = onlyMeant(text, ids);
    return id === undefined ? null : ((await this.#recorded(id)) ?? (await this.#unrecorded(id)));
  }

  async #unrecorded(id: string): Promise<SessionDescription | null> {
    const [found = null, ...more] = isSessionId(id) ? await describeUnrecorded(this.parts, id) : [];
    if (found === null || more.length === 0) return found;
    const owners = [found, ...more].map(({ session }) => session.owner);
    throw new FleetError("FLEET_SESSION_AMBIGUOUS", `${owners.length} users have a session ${quote(id)}.`, {
      suggestions: owners.map((owner): Suggestion => `copilotfleet describe user/${owner}`),
    });
  }

  async #user(id: string): Promise<UserDescription | null> {
    const user = readUser(id);
    return user === null ? null : await describeUser(this.parts, user);
  }

  async #notFound(kind: Kind | undefined, id: string): Promise<FleetError> {
    const isOfSession = (kind === undefined || kind === "session") && isSessionId(id);
    const expiredAt = isOfSession ? await lastExpiry(this.parts.hosts, id, undefined) : null;
    if (expiredAt !== null) return new SessionExpired(expiredAt);
    const known = (await this.#names()).filter((name) => kind === undefined || name.kind === kind);
    const near = nearestOf(id, known, (name) => name.id);
    const message = `There is no ${kind ?? "server, session or user"} ${quote(id)}.`;
    return new FleetError(kind === "session" ? "FLEET_SESSION_NOT_FOUND" : "FLEET_NAME_NOT_FOUND", message, {
      suggestions: [
        ...near.map((name): Suggestion => `copilotfleet describe ${name.kind}/${name.id}`),
        "copilotfleet ps # lists servers and their users",
        "copilotfleet list # lists sessions and their owners",
      ],
    });
  }

  /** The names of all recorded users, sessions and servers, each once. */
  async #names(): Promise<{ kind: Kind; id: string }[]> {
    const { hosts, store, warn } = this.parts;
    const [servers, sessions, tokens] = await Promise.all([
      hosts.recorded(),
      store.sessions.list(warnOfUnreadable(warn)),
      listTokens(store),
    ]);
    const users = new Set([
      ...servers.flatMap(({ server }) => server.user ?? []),
      ...sessions.flatMap(({ owner, members }) => [owner, ...members]),
      ...tokens.map(({ user }) => user),
    ]);
    return [
      ...Array.from(users, (id) => ({ kind: "user" as const, id })),
      ...sessions.map(({ id }) => ({ kind: "session" as const, id })),
      ...Array.from(new Set(servers.map(({ server }) => server.id)), (id) => ({ kind: "server" as const, id })),
    ];
  }

  static {
    Group.guard(DescriptionGroup.prototype, { get: ["name"] });
  }
}

function ambiguous(name: string, kinds: readonly string[]): FleetError {
  const message = `${quote(name)} is the id of a ${kinds.join(" and of a ")}.`;
  return new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: kinds.map((kind): Suggestion => `copilotfleet describe ${kind}/${name}`),
  });
}
