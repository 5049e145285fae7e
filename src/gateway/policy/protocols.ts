import { clientMismatch, runtimeMismatch } from "../../runtime/launch/protocol.js";
import { actionOf, handlingOf, isKnownMethod } from "./methods.js";
import { whyRefused } from "./refused-methods.js";
import { APART_OPTIONS, checkOptions, sessionParams } from "./settings.js";

/** One version of the protocol between SDK and server, with its tables of methods and settings. */
export interface Protocol {
  readonly version: number;
  readonly handlingOf: typeof handlingOf;
  readonly actionOf: typeof actionOf;
  readonly isKnownMethod: typeof isKnownMethod;
  readonly whyRefused: typeof whyRefused;
  readonly sessionParams: typeof sessionParams;
  /** On a shared server, the door sends a `session.options.update` with these parameters after it has opened a session. */
  readonly apartOptions: typeof APART_OPTIONS;
  readonly checkOptions: typeof checkOptions;
}

const tables = {
  handlingOf,
  actionOf,
  isKnownMethod,
  whyRefused,
  sessionParams,
  apartOptions: APART_OPTIONS,
  checkOptions,
};

/** The protocols by version. The versions are those of `SUPPORTED_VERSIONS` in `runtime/launch/protocol.ts`. */
export const PROTOCOLS: ReadonlyMap<number, Protocol> = new Map([[3, { version: 3, ...tables }]]);

/** @param named the `protocolVersion` in the client's `connect`. SDK 1.x names none, and speaks version 3. */
export function clientProtocol(named: unknown, protocols = PROTOCOLS): Protocol {
  const version = typeof named === "number" ? named : 3;
  const protocol = protocols.get(version);
  if (protocol === undefined) throw clientMismatch(version, [...protocols.keys()]);
  return protocol;
}

/** @param answered the `protocolVersion` in the server's answer to `connect` */
export function serverProtocol(where: string, answered: unknown): Protocol {
  const protocol = typeof answered === "number" ? PROTOCOLS.get(answered) : undefined;
  if (protocol === undefined) throw runtimeMismatch(where, answered ?? null);
  return protocol;
}

/** Refuses a client and a server of different versions, because the front door does not translate requests. */
export function checkSameProtocol(client: Protocol, server: Protocol): void {
  if (client.version !== server.version) throw clientMismatch(client.version, [server.version]);
}
