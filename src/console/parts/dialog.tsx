import { type ComponentChildren, createContext, isValidElement } from "preact";
import { useCallback, useContext, useEffect, useRef, useState } from "preact/hooks";
import { type Problem, problemFrom } from "../api/client.js";
import { Button, ProblemNotice } from "./notice.js";

/** The fields of a form that are filled in, without blanks around their texts. */
export type Values = Readonly<Record<string, string>>;

/** The place of a dialog: what happens when its action has succeeded, and how it closes or gives way to another. */
export const DialogPlace = createContext({
  done: async (): Promise<unknown> => undefined,
  show: (_: ComponentChildren): void => undefined,
});

/**
 * The place of the dialogs of a page: the dialog that is open, and a function that opens one.
 *
 * @param done is called after the action of a dialog
 */
export function useDialog(done: () => Promise<unknown>) {
  const [content, show] = useState<ComponentChildren>(null);
  const dialog = content !== null && <DialogPlace.Provider value={{ done, show }}>{content}</DialogPlace.Provider>;
  return [dialog, show] as const;
}

interface DialogProps {
  title: string;
  /** The text of the button for the action. */
  action: string;
  isDangerous?: boolean;
  /** Whether the dialog only shows something, so that there is nothing to cancel. */
  isNotice?: boolean;
  /** What the action does, one sentence or two in each line. */
  effects?: readonly string[];
  children?: ComponentChildren;
  /** Runs the action. Then the dialog closes. If this resolves with another dialog, that one follows. */
  act?(values: Values): Promise<unknown>;
}

/** A modal dialog with one action. It is also the confirmation of a dangerous action. */
export function Dialog(props: DialogProps) {
  const { title, action, isDangerous = false, isNotice = false, effects = [], children, act } = props;
  const { done, show } = useContext(DialogPlace);
  const close = useCallback(() => show(null), [show]);
  const dialog = useRef<HTMLDialogElement>(null);
  const [problem, setProblem] = useState<Problem>();
  const [isBusy, setBusy] = useState(false);
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  const submit = async (form: HTMLFormElement) => {
    setBusy(true);
    try {
      const fields = [...new FormData(form)].map(([name, value]) => [name, String(value).trim()] as const);
      const next = await act?.(Object.fromEntries(fields.filter(([, value]) => value !== "")));
      await done();
      show(isValidElement(next) ? next : null);
    } catch (error) {
      setProblem(problemFrom(error));
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby="dialog-title" onClose={close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void submit(event.currentTarget);
        }}
      >
        <h2 id="dialog-title" dir="auto">
          {title}
        </h2>
        {effects.length > 0 && (
          <ul class="effects">
            {effects.map((effect) => (
              <li key={effect}>{effect}</li>
            ))}
          </ul>
        )}
        {children}
        <ProblemNotice problem={problem} />
        <div class="dialog-buttons">
          {!isNotice && <Button act={close}>Cancel</Button>}
          <button type="submit" class={`button ${isDangerous ? "danger" : "primary"}`} disabled={isBusy}>
            {action}
          </button>
        </div>
      </form>
    </dialog>
  );
}

interface FieldProps {
  name: string;
  label: string;
  hint?: string;
  /** The text at first. */
  initial?: string;
  onValue?(value: string): void;
  type?: string;
  placeholder?: string | undefined;
}

export function Field({ name, label, hint, initial, onValue, type = "text", placeholder }: FieldProps) {
  const id = `field-${name}`;
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        name={name}
        type={type}
        dir="auto"
        defaultValue={initial}
        placeholder={placeholder}
        autocomplete="off"
        spellcheck={false}
        aria-describedby={hint === undefined ? undefined : `${id}-hint`}
        onInput={({ currentTarget }) => onValue?.(currentTarget.value)}
      />
      {hint !== undefined && (
        <p id={`${id}-hint`} class="quiet">
          {hint}
        </p>
      )}
    </div>
  );
}
