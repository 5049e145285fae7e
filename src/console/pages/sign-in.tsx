import { useEffect, useState } from "preact/hooks";
import { type Problem, problemFrom, signIn } from "../api/client.js";
import type { Caller } from "../api/types.js";
import { Dialog, DialogPlace, Field } from "../parts/dialog.js";
import { useTitle } from "../parts/hooks.js";
import { ProblemNotice } from "../parts/notice.js";

interface SignInProps {
  /** Why the sign-in with a code, or with an earlier cookie, failed. */
  problem?: Problem | undefined;
  /** Whether the page was signed in until just now. */
  isOver: boolean;
  enter(caller: Caller): void;
}

export function SignIn({ problem: initial, isOver, enter }: SignInProps) {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState(initial);
  const [isRefused, setRefused] = useState(initial?.status === 401);
  const [isBusy, setBusy] = useState(false);
  const [isFromCode, setFromCode] = useState(initial !== undefined);
  useTitle("Sign in");
  useEffect(() => document.getElementById("field-token")?.focus(), []);
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setFromCode(false);
    try {
      enter(await signIn({ token }));
    } catch (error) {
      const failure = problemFrom(error);
      setRefused(failure.status === 401);
      setProblem(failure);
      setBusy(false);
    }
  };
  return (
    <main class="sign-in">
      <form class="card" onSubmit={(event) => void submit(event)}>
        <h1>
          <span class="brand-mark" aria-hidden="true" />
          copilotfleet
        </h1>
        {isOver && problem === undefined && (
          <p class="notice" role="status">
            You are signed out, or your token has expired or was revoked.
          </p>
        )}
        {isRefused ? <Refused isCode={isFromCode} /> : <ProblemNotice problem={problem} />}
        <Field
          name="token"
          label="Token"
          type="password"
          onValue={setToken}
          hint="A token of the fleet, or of your identity provider."
        />
        <button type="submit" class="button primary wide" disabled={isBusy || token.trim() === ""}>
          {isBusy ? "Signing in…" : "Sign in"}
        </button>
        <p class="quiet">
          On the fleet's machine, <code>copilotfleet open</code> signs you in without a token.
        </p>
      </form>
    </main>
  );
}

interface ConfirmCodeProps {
  code: string;
  /** The user for whom the code was issued. */
  user: string;
  close(): void;
}

/** Asks whether to replace the current sign-in with that of another user, because a stranger may have sent the link. */
export function ConfirmCode({ code, user, close }: ConfirmCodeProps) {
  useTitle("Sign in");
  return (
    <main class="sign-in">
      <DialogPlace.Provider value={{ done: async () => undefined, show: close }}>
        <Dialog title={`Sign in as ${user}?`} action="Sign in" act={async () => await signIn({ code, user })}>
          <p>
            This link signs you in as <bdi>{user}</bdi>, who then sees everything that you write. Continue only if you
            asked for the link.
          </p>
        </Dialog>
      </DialogPlace.Provider>
    </main>
  );
}

function Refused({ isCode }: { isCode: boolean }) {
  return (
    <div class="notice bad" role="alert">
      {isCode ? (
        <p>
          This code was used before, or is older than five minutes. Run <code>copilotfleet open</code> again.
        </p>
      ) : (
        <p>The fleet does not accept this token. Check it, or ask an operator for a new one.</p>
      )}
    </div>
  );
}
