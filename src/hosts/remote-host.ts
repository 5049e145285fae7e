import { FleetError, option, quote } from "../base/errors.js";
import type { HostRecord } from "../base/host.js";
import type { LogPosition } from "../serve/logs.js";
import type { SessionsContext } from "../sessions/problems.js";
import { ControlLink, type LinkContext } from "./calls/control-link.js";
import type { AnswerOf, Call, Method, ParamsOf } from "./calls/rpc-table.js";
import type { Host } from "./fleet-hosts.js";

export type RemoteHostContext = LinkContext & Pick<SessionsContext, "config" | "events">;

/** Another host. Each method is a call in `calls/rpc-table.ts`. */
export class RemoteHost implements Host {
  readonly record: HostRecord;
  readonly #context: RemoteHostContext;

  constructor(record: HostRecord, context: RemoteHostContext) {
    this.record = record;
    this.#context = context;
  }

  get name(): string {
    return this.record.name;
  }

  readonly spawn = this.#asks("spawn");
  readonly spawnMany = this.#asks("spawnMany");
  readonly serverFor = this.#asks("serverFor");
  readonly servers = this.#asks("servers");
  readonly server = this.#asks("server");
  readonly stop = this.#asks("stop");
  readonly restart = this.#asks("restart");
  readonly restartRolling = this.#asks("restartRolling");
  readonly logEnd = this.#asks("logEnd");
  readonly moreLog = this.#asks("moreLog");
  readonly sessions = this.#asks("sessions");
  readonly sessionOf = this.#asks("sessionOf");
  readonly history = this.#asks("history");
  readonly histories = this.#asks("histories");
  readonly prompts = this.#asks("prompts");
  readonly loaded = this.#asks("loaded");
  readonly activity = this.#asks("activity");
  readonly samples = this.#asks("samples");
  readonly evict = this.#asks("evict");
  readonly abort = this.#asks("abort");
  readonly requests = this.#asks("requests");
  readonly answerRequest = this.#asks("answerRequest");
  readonly noteRequest = this.#asks("noteRequest");
  readonly deleteSessions = this.#asks("deleteSessions");
  readonly gc = this.#asks("gc");
  readonly endTokens = this.#asks("endTokens");
  readonly tokenEnds = this.#asks("tokenEnds");
  readonly events = this.#asks("events");
  readonly verifyEvents = this.#asks("verifyEvents");
  readonly quota = this.#asks("quota");
  readonly purge = this.#asks("purge");
  readonly exportSession = this.#asks("exportSession");
  readonly readArchive = this.#asks("readArchive");
  readonly dropArchive = this.#asks("dropArchive");
  readonly writeArchive = this.#asks("writeArchive");
  readonly importArchive = this.#asks("importArchive");

  async *followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncGenerator<Buffer> {
    await using link = await ControlLink.open(this.#context, this.record, signal);
    for (let position = at; !signal.aborted; ) {
      const more = await this.#call(link, "moreLog", { id, at: position }, signal).catch((error: unknown) => {
        if (signal.aborted) return null;
        throw error;
      });
      if (more === null) return;
      position = more.at;
      if (more.bytes !== "") yield Buffer.from(more.bytes, "base64");
    }
  }

  #asks<M extends Method>(method: M): (params: ParamsOf<M>, call?: Call) => Promise<AnswerOf<M>> {
    return async (params, { signal } = {}) => {
      signal?.throwIfAborted();
      refuseTokenSource(params, this.name);
      await using link = await ControlLink.open(this.#context, this.record, signal);
      return await this.#call(link, method, params, signal);
    };
  }

  async #call<M extends Method>(link: ControlLink, method: M, params: ParamsOf<M>, signal: AbortSignal | undefined) {
    // Import the table only here, because a fleet on one host never needs it, and `ps` starts faster without it.
    const { limitOf, readAnswer } = await import("./calls/rpc-table.js");
    const limitMs = limitOf(method, params, this.#context.config);
    const { actor } = this.#context.events;
    return readAnswer(method, await link.call(method, { ...params, actor }, { limitMs, signal }), this.name);
  }
}

/** Refuses a request with a token source, because no host lets another host name its variables and files. */
function refuseTokenSource(params: object, host: string): void {
  const { request } = params as { request?: { token?: unknown } };
  if (request?.token === undefined) return;
  const message = `The user's server is on host ${quote(host)}, and ${option("token")} names a source on this host only.`;
  throw new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: [`Run the command on host ${host}.`, "Or set auth in the configuration of that host."],
  });
}
