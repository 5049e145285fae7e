import type { SessionRecord } from "../../model/session.js";
import { clientMismatch, runtimeMismatch } from "../../runtime/launch/protocol.js";
import type { Params } from "../wire/client-message.js";
import { type Handling, handlingOf, isKnownMethod } from "./methods.js";
import { whyRefused } from "./refused-methods.js";
import { APART_OPTIONS, checkOptions, type Surroundings, sessionParams } from "./settings.js";

/**
 * One version of the protocol, with its tables of methods and settings. Each client and each server has the protocol of
 * the version that it speaks.
 */
export interface Protocol {
  readonly version: number;
  /** The rules for a method. An unknown one is refused. */
  handlingOf(method: string): Handling;
  isKnownMethod(method: string): boolean;
  /** The reason why no client may use a method, as the end of a sentence. */
  whyRefused(method: string): string;
  /**
   * The parameters that a server gets for `session.create` or `session.resume`.
   *
   * @throws FleetError `FLEET_METHOD_DENIED`.
   */
  sessionParams(
    method: "session.create" | "session.resume",
    asked: Params,
    record: SessionRecord,
    surroundings: Surroundings,
  ): Params;
  /** The parameters of the `session.options.update` that follows on a shared server. */
  readonly apartOptions: Params;
  /** @throws FleetError `FLEET_METHOD_DENIED`. */
  checkOptions(
    method: string,
    asked: Params,
    surroundings: Pick<Surroundings, "own" | "member" | "isolation" | "config">,
  ): void;
}

/** The protocols by version. The versions are those of `SUPPORTED_VERSIONS` in `runtime/launch/protocol.ts`. */
export const PROTOCOLS: ReadonlyMap<number, Protocol> = new Map([
  [
    3,
    {
      version: 3,
      handlingOf,
      isKnownMethod,
      whyRefused,
      sessionParams,
      apartOptions: APART_OPTIONS,
      checkOptions,
    },
  ],
]);

/** SDK 1.x names no version in `connect`. */
const UNNAMED_VERSION = 3;

/**
 * The protocol of a client.
 *
 * @param named the `protocolVersion` in its `connect`
 * @throws FleetError `FLEET_PROTOCOL_UNSUPPORTED` when this fleet does not know the version.
 */
export function clientProtocol(named: unknown, protocols = PROTOCOLS): Protocol {
  const version = typeof named === "number" ? named : UNNAMED_VERSION;
  const protocol = protocols.get(version);
  if (protocol === undefined) throw clientMismatch(version, [...protocols.keys()]);
  return protocol;
}

/**
 * The protocol of a server.
 *
 * @param answered the `protocolVersion` in its answer to `connect`
 * @throws FleetError `FLEET_RUNTIME_TOO_OLD` or `FLEET_RUNTIME_TOO_NEW` when this fleet does not know the version.
 */
export function serverProtocol(where: string, answered: unknown): Protocol {
  const protocol = typeof answered === "number" ? PROTOCOLS.get(answered) : undefined;
  if (protocol === undefined) throw runtimeMismatch(where, answered ?? null);
  return protocol;
}

/**
 * Requires that client and server speak the same version, because the front door does not translate requests.
 *
 * @throws FleetError `FLEET_PROTOCOL_UNSUPPORTED` when they do not.
 */
export function checkSameProtocol(client: Protocol, server: Protocol): void {
  if (client.version !== server.version) throw clientMismatch(client.version, [server.version]);
}
