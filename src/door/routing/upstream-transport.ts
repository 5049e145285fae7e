import type { SessionRecord } from "../../base/session.js";
import { keepLimited } from "../../base/usage.js";
import type { Loading, Transport } from "../../sessions/use/load.js";
import { reachOf } from "../policy/reach.js";
import { type ClientState, hasOwnFolder } from "../state/client-state.js";
import type { ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import type { Connector } from "./connector.js";

/** How a client opens a session. */
export interface Opening {
  /** The parameters of the client's request. */
  asked: Params;
  /** Whether the client already has the session open. If so, the session stays open even if this opening fails. */
  isOpen?: boolean;
  /** Called before the request to the server is sent, because events may arrive before the answer. */
  onLink: (link: ServerLink) => void;
  /**
   * Called with the server's answer, before the next frames of the server are handled. On a shared server, the door
   * sets more options of the session after this call.
   */
  onResult: (result: unknown, link: ServerLink) => void;
}

/**
 * The GitHub token with which this user signed on. Null if the user signed on otherwise, if the session belongs to
 * another user, or if a model provider is configured.
 */
export function ownGitHubToken({ door, user, identity }: ClientState, { owner }: SessionRecord): string | null {
  return owner !== user || door.config.provider !== null ? null : door.signOn.gitHubTokenOf(identity);
}

/** The requests that {@link keepLimited} makes, sent over the client's connection to the server. */
function limitsRpc(upstream: ServerLink["upstream"], sessionId: string, signal: AbortSignal) {
  const ask = async (method: string, params: object = {}) =>
    await upstream.request(method, { ...params, sessionId }, undefined, signal);
  return {
    metadata: { snapshot: async () => ((await ask("session.metadata.snapshot")) ?? {}) as object },
    options: { update: async (params: object) => await ask("session.options.update", params) },
  };
}

/** Opens a session over the client's connection to the server, with the client's settings and those of the fleet. */
export function upstreamTransport(
  state: ClientState,
  connector: Connector,
  { asked, isOpen = false, onLink, onResult }: Opening,
): Transport<ServerLink> {
  const { door, user } = state;
  const load = async ({ how, record, server, access }: Loading, signal: AbortSignal) => {
    const link = await connector.to(server);
    onLink(link);
    const { protocol, upstream } = link;
    const { isolation, home } = server;
    const method = how === "create" ? "session.create" : "session.resume";
    const member = record.owner !== user;
    // A user who signed on with a GitHub token uses GitHub's models with that token. A member uses the owner's access.
    const own = ownGitHubToken(state, record);
    const credentials = own === null ? access : { ...access, gitHubToken: own };
    const surroundings = { ...reachOf(link, door.config), member, isolation, home, ...credentials };
    const params = protocol.sessionParams(method, asked, record, surroundings);
    const sessionId = record.id;
    try {
      await upstream.request(method, params, (result) => onResult(result, link), signal);
      if (isolation === "shared")
        await upstream.request("session.options.update", { ...protocol.apartOptions, sessionId }, undefined, signal);
      if (member) await keepLimited(door.config, limitsRpc(upstream, sessionId, signal));
    } catch (error) {
      // The server may still open the session, even though nobody waits for it any longer. So detach from it, without
      // waiting for the answer.
      if (signal.aborted && !isOpen) upstream.request("session.detach", { sessionId }).catch(() => "it has gone");
      throw error;
    }
    return link;
  };
  return { hasOwnFolder: hasOwnFolder(asked), load };
}
