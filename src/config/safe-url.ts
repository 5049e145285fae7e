import { isLoopback } from "./values/redis-url.js";

export const ALLOWED_SAFE_URL =
  'an https:// URL without a user, a password and a fragment, such as "https://login.example", or an http:// URL of this machine';

/**
 * Whether a text is an https:// URL, or an http:// URL of this machine, without a user, a password and a fragment.
 * Nobody on the network path can change the answers from such a URL.
 */
export function isSafeUrl(text: string): boolean {
  if (/[\s\p{Cc}]/u.test(text) || !URL.canParse(text)) return false;
  const { protocol, username, password, hostname, hash } = new URL(text);
  if (username !== "" || password !== "" || hash !== "") return false;
  return protocol === "https:" || (protocol === "http:" && isLoopback({ host: hostname.replace(/^\[|\]$/g, "") }));
}
