import type { Attempts } from "../gateway/entry/attempts.js";
import { type Identity, isHost } from "../identity/identity.js";
import type { SignOn } from "../identity/sign-on.js";
import type { SignOnEvents } from "../identity/sign-on-events.js";
import { tokenIdIn } from "../identity/tokens.js";
import { invalid, unauthenticated } from "./problem.js";

const BEARER = /^Bearer +([\x21-\x7e]{1,16384})$/i;
/** Matches a token of the fleet, of an identity provider or of GitHub, and a query parameter named like a token. */
const TOKEN_IN_URL =
  /cft_[a-z0-9]{16}_|\beyJ[\w-]+\.[\w-]+\.|\b(?:gh[a-z]_|github_pat_)\w{16}|[?&](?:access_token|token|authorization|bearer)=/i;

/** Refuses a token in a URL, because logs and browsers store URLs. */
export function refuseTokenIn(url: string): void {
  const decoded = url.replace(/%[2-7][0-9a-f]/gi, (code) => String.fromCharCode(Number.parseInt(code.slice(1), 16)));
  if (!TOKEN_IN_URL.test(decoded)) return;
  throw invalid("The URL contains a token. Revoke that token, and send a new one in the header Authorization.");
}

/** Finds out who makes a request, from its header Authorization. */
export class Authenticator {
  readonly #signOn: SignOn;
  readonly #attempts: Attempts;
  readonly #events: SignOnEvents;

  constructor(signOn: SignOn, attempts: Attempts, events: SignOnEvents) {
    this.#signOn = signOn;
    this.#attempts = attempts;
    this.#events = events;
  }

  /**
   * Returns the user who makes a request.
   *
   * @param address the client's address, for events and for the queue of GitHub checks, which serves the networks of
   * clients in rotation
   * @param onRefused is called with the reason of a refusal, for the log
   * @throws FleetError `FLEET_TOKEN_REFUSED`, always with the same text
   */
  async identify(header: string | undefined, address: string, onRefused: (reason: string) => void): Promise<Identity> {
    const token = BEARER.exec(header ?? "")?.[1];
    if (token === undefined) throw unauthenticated();
    const identity = await this.#signOn.identify(token, address);
    if (!("refused" in identity) && !isHost(identity)) {
      await this.#events.acceptedAgain(identity, address);
      return identity;
    }
    onRefused("refused" in identity ? identity.refused : "It is the token of another host.");
    const id = tokenIdIn(token);
    await Promise.all([this.#attempts.failed(id), this.#events.refused(id, address)]);
    throw unauthenticated();
  }
}
